// A receiver for Attesto's events. Go 1.19 or newer, without dependencies.
//
//	ATTESTO_WEBHOOK_SECRET=whsec_... go run receiver.go
//
// Settings, from the environment:
//
//	ATTESTO_WEBHOOK_SECRET           what `attesto webhook set-config` printed
//	ATTESTO_WEBHOOK_SECRET_PREVIOUS  the one before it, while you change secrets (optional)
//	EVENTS_DIR                       where events are stored for your own code (./events)
//	HOST, PORT                       where to listen (127.0.0.1, 3000); behind your web server, which ends TLS
package main

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

const (
	path         = "/hooks/attesto"
	window       = 5 * time.Minute
	maxBodyBytes = 4 << 20
)

var (
	digits  = regexp.MustCompile(`^[0-9]{1,12}$`)
	eventID = regexp.MustCompile(`^evt_[0-9A-Z]{26}$`)
)

// isFromAttesto reports whether one of our secrets signed these bytes, within the last five minutes.
func isFromAttesto(secrets []string, header string, body []byte, now time.Time) bool {
	var timestamp string
	var given [][]byte
	for _, part := range strings.Split(header, ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(part), "=")
		switch name {
		case "t":
			timestamp = value
		case "v1":
			if mac, err := hex.DecodeString(value); err == nil {
				given = append(given, mac)
			}
		}
	}
	if !digits.MatchString(timestamp) {
		return false
	}
	seconds, err := strconv.ParseInt(timestamp, 10, 64)
	if err != nil {
		return false
	}
	if age := now.Sub(time.Unix(seconds, 0)); age > window || age < -window {
		return false
	}
	fits := false
	for _, secret := range secrets {
		mac := hmac.New(sha256.New, []byte(secret))
		mac.Write([]byte(timestamp + "."))
		mac.Write(body)
		expected := mac.Sum(nil)
		for _, value := range given {
			// In constant time; a value of another length never matches.
			fits = hmac.Equal(value, expected) || fits
		}
	}
	return fits
}

// keep stores an event for your own code. It returns false if the event is already stored.
//
// Here an event is a file that is created atomically. In your application, use a table with the event's id as its
// primary key, and `INSERT ... ON CONFLICT DO NOTHING`, in one transaction with what the event changes.
func keep(folder, id string, body []byte) (isNew bool, err error) {
	draft, err := os.CreateTemp(folder, ".draft-")
	if err != nil {
		return false, err
	}
	defer os.Remove(draft.Name())
	defer draft.Close()
	if _, err = draft.Write(body); err != nil {
		return false, err
	}
	if err = draft.Sync(); err != nil {
		return false, err
	}
	err = os.Link(draft.Name(), filepath.Join(folder, id+".json"))
	if errors.Is(err, fs.ErrExist) {
		return false, nil
	}
	return err == nil, err
}

func answer(w http.ResponseWriter, status int, content any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	// The client has disconnected if this fails.
	_ = json.NewEncoder(w).Encode(content)
}

func refuse(w http.ResponseWriter, status int, why string) {
	answer(w, status, map[string]string{"error": why})
}

func receive(secrets []string, folder string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost {
			refuse(w, http.StatusNotFound, "not here")
			return
		}
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBodyBytes))
		var tooLong *http.MaxBytesError
		if errors.As(err, &tooLong) {
			refuse(w, http.StatusRequestEntityTooLarge, "too long")
			return
		}
		if err != nil {
			refuse(w, http.StatusBadRequest, "broken off")
			return
		}
		// The exact bytes that arrived, before parsing.
		if !isFromAttesto(secrets, r.Header.Get("X-Attesto-Signature"), body, time.Now()) {
			refuse(w, http.StatusUnauthorized, "not signed by Attesto")
			return
		}
		var event struct {
			ID string `json:"eventId"`
		}
		if json.Unmarshal(body, &event) != nil || !eventID.MatchString(event.ID) {
			refuse(w, http.StatusBadRequest, "no event")
			return
		}
		isNew, err := keep(folder, event.ID, body)
		if err != nil {
			// Attesto will send it again.
			log.Printf("cannot keep %s: %v", event.ID, err)
			refuse(w, http.StatusInternalServerError, "cannot keep it")
			return
		}
		answer(w, http.StatusOK, map[string]any{"eventId": event.ID, "isNew": isNew})
	}
}

func setting(name, otherwise string) string {
	if value := os.Getenv(name); value != "" {
		return value
	}
	return otherwise
}

func main() {
	var secrets []string
	for _, name := range []string{"ATTESTO_WEBHOOK_SECRET", "ATTESTO_WEBHOOK_SECRET_PREVIOUS"} {
		if secret := os.Getenv(name); secret != "" {
			secrets = append(secrets, secret)
		}
	}
	if len(secrets) == 0 {
		log.Fatal("set ATTESTO_WEBHOOK_SECRET to what `attesto webhook set-config` printed")
	}
	folder := setting("EVENTS_DIR", "events")
	if err := os.MkdirAll(folder, 0o700); err != nil {
		log.Fatal(err)
	}
	listener, err := net.Listen("tcp", net.JoinHostPort(setting("HOST", "127.0.0.1"), setting("PORT", "3000")))
	if err != nil {
		log.Fatal(err)
	}
	routes := http.NewServeMux()
	routes.HandleFunc(path, receive(secrets, folder))
	server := http.Server{Handler: routes, ReadTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second}
	fmt.Printf("listening on http://%s%s\n", listener.Addr(), path)
	log.Fatal(server.Serve(listener))
}
