// A receiver for Attesto's events. Java 17 or newer, without dependencies.
//
//     ATTESTO_WEBHOOK_SECRET=whsec_... java Receiver.java
//
// Settings, from the environment:
//     ATTESTO_WEBHOOK_SECRET           what `attesto webhook set-config` printed
//     ATTESTO_WEBHOOK_SECRET_PREVIOUS  the one before it, while you change secrets (optional)
//     EVENTS_DIR                       where events are stored for your own code (./events)
//     STATES_DIR                       where the newest state of each purchase is kept (./states)
//     HOST, PORT                       where to listen (127.0.0.1, 3000); behind your web server, which ends TLS

import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.net.InetSocketAddress;
import java.nio.ByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.charset.StandardCharsets;
import java.nio.file.FileAlreadyExistsException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.nio.file.StandardOpenOption;
import java.security.GeneralSecurityException;
import java.security.MessageDigest;
import java.time.Instant;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.HexFormat;
import java.util.List;
import java.util.Optional;
import java.util.concurrent.Executors;
import java.util.regex.Pattern;
import java.util.stream.Stream;
import javax.crypto.Mac;
import javax.crypto.spec.SecretKeySpec;

public final class Receiver {
    private static final String PATH = "/hooks/attesto";
    private static final long WINDOW_SECONDS = 300;
    private static final int MAX_BODY_BYTES = 4 * 1024 * 1024;
    // The JDK reads no JSON. The body is Attesto's own, its signature was checked, and its keys come in a promised order
    // with nothing nested before `eventId`, so the first match is the one. With a JSON library, use that.
    private static final Pattern EVENT_ID = Pattern.compile("^\\{[^{\\[]*?\"eventId\":\"(evt_[0-9A-Z]{26})\"");
    // The same for the purchase and its state: a quote in a value is escaped, so that a value never looks like a key.
    private static final Pattern PURCHASE =
            Pattern.compile("\"source\":\"([a-z]+)\",\"environment\":(?:null|\"[a-z]+\"),"
            + "\"subject\":\\{\"key\":(\"(?:[^\"\\\\]|\\\\.)*\"),");
    private static final Pattern STATE = Pattern.compile("\"sequence\":([0-9]+),\"state\":\\{\"status\":\"[a-z_]+\","
            + "\"entitled\":(true|false),\"entitledUntil\":(?:null|\"([^\"]*)\"),.*?\"asOf\":\"([^\"]*)\"\\}");

    /** Whether one of our secrets signed these bytes, within the last five minutes. */
    static boolean isFromAttesto(List<String> secrets, String header, byte[] body, long now)
            throws GeneralSecurityException {
        String timestamp = "";
        List<byte[]> given = new ArrayList<>();
        for (String part : header.split(",")) {
            String[] pair = part.strip().split("=", 2);
            if (pair.length == 2 && pair[0].equals("t")) {
                timestamp = pair[1];
            } else if (pair.length == 2 && pair[0].equals("v1") && pair[1].matches("[0-9a-f]{64}")) {
                given.add(HexFormat.of().parseHex(pair[1]));
            }
        }
        if (!timestamp.matches("[0-9]{1,12}") || Math.abs(now - Long.parseLong(timestamp)) > WINDOW_SECONDS) {
            return false;
        }
        boolean fits = false;
        for (String secret : secrets) {
            Mac mac = Mac.getInstance("HmacSHA256");
            mac.init(new SecretKeySpec(secret.getBytes(StandardCharsets.UTF_8), "HmacSHA256"));
            mac.update((timestamp + ".").getBytes(StandardCharsets.UTF_8));
            byte[] expected = mac.doFinal(body);
            for (byte[] value : given) {
                // In constant time.
                fits |= MessageDigest.isEqual(value, expected);
            }
        }
        return fits;
    }

    /**
     * Stores an event for your own code. False if it is already stored.
     *
     * <p>Here an event is a file that is created atomically. In your application, use a table with the event's id as its
     * primary key, and {@code INSERT ... ON CONFLICT DO NOTHING}, in one transaction with what the event changes.
     */
    static boolean keep(Path folder, String eventId, byte[] body) throws IOException {
        Path draft = Files.createTempFile(folder, ".draft-", "");
        try {
            try (FileChannel file = FileChannel.open(draft, StandardOpenOption.WRITE)) {
                ByteBuffer rest = ByteBuffer.wrap(body);
                while (rest.hasRemaining()) {
                    file.write(rest);
                }
                file.force(true);
            }
            Files.createLink(folder.resolve(eventId + ".json"), draft);
            return true;
        } catch (FileAlreadyExistsException known) {
            return false;
        } finally {
            Files.delete(draft);
        }
    }

    /** The newest state of a purchase: the fields that are needed here. {@code entitledUntil} is null where it has no end. */
    record KeptState(Instant asOf, long sequence, boolean entitled, Instant entitledUntil) {
        /** The gate: may the customer use the product now? */
        boolean isEntitled(Instant now) {
            return entitled && (entitledUntil == null || now.isBefore(entitledUntil));
        }

        boolean isNewerThan(KeptState other) {
            return Comparator.comparing(KeptState::asOf).thenComparing(KeptState::sequence).compare(this, other) > 0;
        }

        static KeptState of(String asOf, String sequence, String entitled, String entitledUntil) {
            Instant end = entitledUntil == null || entitledUntil.isEmpty() ? null : Instant.parse(entitledUntil);
            return new KeptState(Instant.parse(asOf), Long.parseLong(sequence), Boolean.parseBoolean(entitled), end);
        }

        static KeptState read(Path path) throws IOException {
            String[] lines = Files.readString(path).split("\n", -1);
            return of(lines[0], lines[1], lines[2], lines[3]);
        }

        void write(Path path) throws IOException {
            Path draft = path.resolveSibling(path.getFileName() + ".draft");
            String end = entitledUntil == null ? "" : entitledUntil.toString();
            Files.writeString(draft, String.join("\n", asOf.toString(), "" + sequence, "" + entitled, end));
            Files.move(draft, path, StandardCopyOption.ATOMIC_MOVE);
        }
    }

    /**
     * Keeps the newest state of the event's purchase, and returns what is kept; null if nothing is known yet.
     *
     * <p>Newest is the latest {@code asOf}, and of equal ones the higher {@code sequence}; an event without a state changes
     * nothing. Here the state is a file. In your application it is a row, and all of this is one {@code INSERT ... ON CONFLICT
     * DO UPDATE ... WHERE}.
     */
    static synchronized KeptState keepState(Path folder, String event) throws IOException, GeneralSecurityException {
        var purchase = PURCHASE.matcher(event);
        if (!purchase.find()) {
            return null;
        }
        byte[] key = (purchase.group(1) + " " + purchase.group(2)).getBytes(StandardCharsets.UTF_8);
        byte[] name = MessageDigest.getInstance("SHA-256").digest(key);
        Path path = folder.resolve(HexFormat.of().formatHex(name) + ".txt");
        KeptState kept = Files.exists(path) ? KeptState.read(path) : null;
        var found = STATE.matcher(event);
        if (found.find()) {
            var fresh = KeptState.of(found.group(4), found.group(1), found.group(2), found.group(3));
            if (kept == null || fresh.isNewerThan(kept)) {
                fresh.write(path);
                kept = fresh;
            }
        }
        return kept;
    }

    private record Answer(int status, String json) {
        static Answer refuse(int status, String why) {
            return new Answer(status, "{\"error\":\"" + why + "\"}");
        }
    }

    private static Answer receive(HttpExchange exchange, List<String> secrets, Path folder, Path states)
            throws IOException, GeneralSecurityException {
        if (!exchange.getRequestMethod().equals("POST") || !exchange.getRequestURI().getPath().equals(PATH)) {
            return Answer.refuse(404, "not here");
        }
        byte[] body = exchange.getRequestBody().readNBytes(MAX_BODY_BYTES + 1);
        if (body.length > MAX_BODY_BYTES) {
            return Answer.refuse(413, "too long");
        }
        // The exact bytes that arrived, before parsing.
        String header = Optional.ofNullable(exchange.getRequestHeaders().getFirst("X-Attesto-Signature")).orElse("");
        if (!isFromAttesto(secrets, header, body, Instant.now().getEpochSecond())) {
            return Answer.refuse(401, "not signed by Attesto");
        }
        String event = new String(body, StandardCharsets.UTF_8);
        var found = EVENT_ID.matcher(event);
        if (!found.find()) {
            return Answer.refuse(400, "no event");
        }
        String eventId = found.group(1);
        boolean isNew = keep(folder, eventId, body);
        KeptState state = keepState(states, event);
        String entitled = state == null ? "null" : "" + state.isEntitled(Instant.now());
        String content = "{\"eventId\":\"" + eventId + "\",\"isNew\":" + isNew + ",\"entitled\":" + entitled + "}";
        return new Answer(200, content);
    }

    private static String setting(String name, String otherwise) {
        return Optional.ofNullable(System.getenv(name)).filter(value -> !value.isEmpty()).orElse(otherwise);
    }

    public static void main(String[] arguments) throws IOException {
        // For a sender that sends nothing; in seconds.
        System.setProperty("sun.net.httpserver.maxReqTime", "10");
        List<String> secrets = Stream.of("ATTESTO_WEBHOOK_SECRET", "ATTESTO_WEBHOOK_SECRET_PREVIOUS")
                .map(name -> setting(name, ""))
                .filter(secret -> !secret.isEmpty())
                .toList();
        if (secrets.isEmpty()) {
            System.err.println("set ATTESTO_WEBHOOK_SECRET to what `attesto webhook set-config` printed");
            System.exit(1);
        }
        Path folder = Files.createDirectories(Path.of(setting("EVENTS_DIR", "events")));
        Path states = Files.createDirectories(Path.of(setting("STATES_DIR", "states")));
        String host = setting("HOST", "127.0.0.1");
        var address = new InetSocketAddress(host, Integer.parseInt(setting("PORT", "3000")));
        HttpServer server = HttpServer.create(address, 0);
        server.setExecutor(Executors.newFixedThreadPool(16));
        server.createContext("/", exchange -> {
            Answer answer;
            try {
                answer = receive(exchange, secrets, folder, states);
            } catch (IOException | UncheckedIOException | GeneralSecurityException problem) {
                // Attesto will send it again.
                System.err.println("cannot keep an event: " + problem);
                answer = Answer.refuse(500, "cannot keep it");
            }
            byte[] text = answer.json().getBytes(StandardCharsets.UTF_8);
            exchange.getResponseHeaders().set("Content-Type", "application/json");
            exchange.sendResponseHeaders(answer.status(), text.length);
            exchange.getResponseBody().write(text);
            exchange.close();
        });
        server.start();
        System.out.println("listening on http://" + host + ":" + server.getAddress().getPort() + PATH);
    }
}
