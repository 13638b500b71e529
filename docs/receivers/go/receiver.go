// A receiver for Attesto's events. Go 1.19 or newer, without dependencies.
//
//	ATTESTO_WEBHOOK_SECRET=whsec_... go run receiver.go
//
// Settings, from the environment:
//
//	ATTESTO_WEBHOOK_SECRET           what `attesto webhook set-config` printed
//	ATTESTO_WEBHOOK_SECRET_PREVIOUS  the one before it, while you change secrets (optional)
//	EVENTS_DIR                       where events are stored for your own code (./events)
//	STATES_DIR                       where the newest state of each purchase is kept (./states)
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
	"sync"
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

// purchaseState is what a purchase is worth: the fields that are needed here.
type purchaseState struct {
	Entitled      bool       `json:"entitled"`
	EntitledUntil *time.Time `json:"entitledUntil"`
	AsOf          time.Time  `json:"asOf"`
}

// isEntitled is the gate: may the customer use the product now?
func (s purchaseState) isEntitled(now time.Time) bool {
	return s.Entitled && (s.EntitledUntil == nil || now.Before(*s.EntitledUntil))
}

// event is what is needed of an event here.
type event struct {
	ID      string `json:"eventId"`
	Source  string `json:"source"`
	Subject *struct {
		Key string `json:"key"`
	} `json:"subject"`
	Sequence int64          `json:"sequence"`
	State    *purchaseState `json:"state"`
}

// keptState is the newest state of a purchase.
type keptState struct {
	Sequence int64         `json:"sequence"`
	State    purchaseState `json:"state"`
}

var statesLock sync.Mutex

// keepState keeps the newest state of the event's purchase, and returns what is kept; nil if nothing is known yet.
//
// Newest is the latest `asOf`, and of equal ones the higher `sequence`; an event without a state changes nothing. Here the
// state is a file. In your application it is a row, and all of this is one `INSERT ... ON CONFLICT DO UPDATE ... WHERE`.
func keepState(folder string, received event) (*purchaseState, error) {
	if received.Subject == nil {
		return nil, nil
	}
	name := sha256.Sum256([]byte(received.Source + " " + received.Subject.Key))
	file := filepath.Join(folder, hex.EncodeToString(name[:])+".json")
	statesLock.Lock()
	defer statesLock.Unlock()
	var kept *keptState
	text, err := os.ReadFile(file)
	if err == nil {
		kept = new(keptState)
		err = json.Unmarshal(text, kept)
	} else if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if err != nil {
		return nil, err
	}
	if fresh := received.State; fresh != nil {
		isNewer := kept == nil || fresh.AsOf.After(kept.State.AsOf) ||
			fresh.AsOf.Equal(kept.State.AsOf) && received.Sequence > kept.Sequence
		if isNewer {
			kept = &keptState{Sequence: received.Sequence, State: *fresh}
			if text, err = json.Marshal(kept); err != nil {
				return nil, err
			}
			if err = os.WriteFile(file+".draft", text, 0o600); err != nil {
				return nil, err
			}
			if err = os.Rename(file+".draft", file); err != nil {
				return nil, err
			}
		}
	}
	if kept == nil {
		return nil, nil
	}
	return &kept.State, nil
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

func receive(secrets []string, folder, states string) http.HandlerFunc {
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
		var received event
		if json.Unmarshal(body, &received) != nil || !eventID.MatchString(received.ID) {
			refuse(w, http.StatusBadRequest, "no event")
			return
		}
		var state *purchaseState
		isNew, err := keep(folder, received.ID, body)
		if err == nil {
			state, err = keepState(states, received)
		}
		if err != nil {
			// Attesto will send it again.
			log.Printf("cannot keep %s: %v", received.ID, err)
			refuse(w, http.StatusInternalServerError, "cannot keep it")
			return
		}
		content := map[string]any{"eventId": received.ID, "isNew": isNew, "entitled": nil}
		if state != nil {
			content["entitled"] = state.isEntitled(time.Now())
		}
		answer(w, http.StatusOK, content)
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
	folder, states := setting("EVENTS_DIR", "events"), setting("STATES_DIR", "states")
	for _, one := range []string{folder, states} {
		if err := os.MkdirAll(one, 0o700); err != nil {
			log.Fatal(err)
		}
	}
	listener, err := net.Listen("tcp", net.JoinHostPort(setting("HOST", "127.0.0.1"), setting("PORT", "3000")))
	if err != nil {
		log.Fatal(err)
	}
	routes := http.NewServeMux()
	routes.HandleFunc(path, receive(secrets, folder, states))
	server := http.Server{Handler: routes, ReadTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second}
	fmt.Printf("listening on http://%s%s\n", listener.Addr(), path)
	log.Fatal(server.Serve(listener))
}
