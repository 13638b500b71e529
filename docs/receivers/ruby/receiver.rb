#!/usr/bin/env ruby
# frozen_string_literal: true

# A receiver for Attesto's events. Ruby 3.0 or newer, without dependencies.
#
#     ATTESTO_WEBHOOK_SECRET=whsec_... ruby receiver.rb
#
# Settings, from the environment:
#     ATTESTO_WEBHOOK_SECRET           what `attesto webhook set-config` printed
#     ATTESTO_WEBHOOK_SECRET_PREVIOUS  the one before it, while you change secrets (optional)
#     EVENTS_DIR                       where events are stored for your own code (./events)
#     STATES_DIR                       where the newest state of each purchase is kept (./states)
#     HOST, PORT                       where to listen (127.0.0.1, 3000); behind your web server, which ends TLS
#
# In a Rails or Sinatra application take `attesto?`, `keep` and `entitled?` as they are, and give them `request.raw_post` or
# `request.body.read`; the small server at the end is only there so that this file can run alone.

require "fileutils"
require "json"
require "openssl"
require "securerandom"
require "socket"
require "time"
require "timeout"

PATH = "/hooks/attesto"
WINDOW_SECONDS = 300
MAX_BODY_BYTES = 4 * 1024 * 1024
MAX_HEAD_BYTES = 32 * 1024
STATES_LOCK = Mutex.new

# Whether one of our secrets signed these bytes, within the last five minutes.
def attesto?(secrets, header, body, now = Time.now.to_f)
  parts = header.split(",").map { |part| part.strip.split("=", 2) }
  timestamp = parts.reverse.find { |name, _| name == "t" }&.last
  return false unless timestamp&.match?(/\A[0-9]{1,12}\z/)
  return false if (now - timestamp.to_i).abs > WINDOW_SECONDS

  given = parts.filter_map { |name, value| value if name == "v1" && value&.match?(/\A[0-9a-f]{64}\z/) }
  fits = secrets.product(given).map do |secret, value|
    # Joins bytes, independent of encodings.
    expected = OpenSSL::HMAC.hexdigest("SHA256", secret, "#{timestamp}.".b + body.b)
    OpenSSL.fixed_length_secure_compare(expected, value)
  end
  fits.any?
end

# Stores an event for your own code. False if it is already stored.
#
# Here an event is a file that is created atomically. In your application, use a table with the event's id as its
# primary key, and `INSERT ... ON CONFLICT DO NOTHING`, in one transaction with what the event changes.
def keep(folder, event_id, body)
  draft = File.join(folder, ".draft-#{SecureRandom.hex(16)}")
  File.open(draft, File::WRONLY | File::CREAT | File::EXCL | File::BINARY, 0o600) do |file|
    file.write(body)
    file.fsync
  end
  File.link(draft, File.join(folder, "#{event_id}.json"))
  true
rescue Errno::EEXIST
  false
ensure
  FileUtils.rm_f(draft)
end

# Keeps the newest state of the event's purchase, and returns what is kept; nil if nothing is known yet.
#
# Newest is the latest `asOf`, and of equal ones the higher `sequence`; an event without a state changes nothing. Here the
# state is a file. In your application it is a row, and all of this is one `INSERT ... ON CONFLICT DO UPDATE ... WHERE`.
def keep_state(folder, event)
  subject = event["subject"]
  return nil unless subject.is_a?(Hash)

  name = OpenSSL::Digest::SHA256.hexdigest("#{event["source"]} #{subject["key"]}")
  path = File.join(folder, "#{name}.json")
  STATES_LOCK.synchronize do
    kept = JSON.parse(File.read(path, encoding: "UTF-8")) if File.exist?(path)
    state = event["state"]
    # Every time has the same form, so that their order is that of the text.
    if state && (kept.nil? || ([state["asOf"], event["sequence"]] <=> [kept["state"]["asOf"], kept["sequence"]]).positive?)
      kept = { "sequence" => event["sequence"], "state" => state }
      File.write("#{path}.draft", JSON.generate(kept))
      File.rename("#{path}.draft", path)
    end
    kept && kept["state"]
  end
end

# The gate: may the customer use the product now?
def entitled?(state, now = Time.now)
  state["entitled"] && (state["entitledUntil"].nil? || now < Time.iso8601(state["entitledUntil"]))
end

def event_of(body)
  event = JSON.parse(body.dup.force_encoding(Encoding::UTF_8))
  id = event["eventId"] if event.is_a?(Hash)
  event if id.is_a?(String) && id.match?(/\Aevt_[0-9A-Z]{26}\z/)
rescue JSON::ParserError
  nil
end

# The status and the content of the answer.
def receive(method, target, headers, secrets, folder, states)
  return [404, { error: "not here" }] unless method == "POST" && target.split("?").first == PATH
  return [411, { error: "how long?" }] unless headers["content-length"]&.match?(/\A[0-9]{1,12}\z/)

  length = headers["content-length"].to_i
  return [413, { error: "too long" }] if length > MAX_BODY_BYTES

  body = yield length
  # The exact bytes that arrived, before parsing.
  return [401, { error: "not signed by Attesto" }] unless attesto?(secrets, headers["x-attesto-signature"] || "", body)

  event = event_of(body)
  return [400, { error: "no event" }] unless event

  is_new = keep(folder, event["eventId"], body)
  state = keep_state(states, event)
  [200, { eventId: event["eventId"], isNew: is_new, entitled: state && entitled?(state) }]
rescue SystemCallError => e
  # Attesto will send it again.
  warn "cannot keep an event: #{e.message}"
  [500, { error: "cannot keep it" }]
end

# One request for each connection.
def converse(socket, secrets, folder, states)
  request = socket.gets("\r\n", MAX_HEAD_BYTES).to_s
  headers = {}
  room = MAX_HEAD_BYTES
  while (line = socket.gets("\r\n", room)) && line != "\r\n"
    return if (room -= line.bytesize) <= 0

    name, value = line.split(":", 2)
    headers[name.downcase] = value.to_s.strip
  end
  method, target, = request.split(" ")
  return unless target

  status, content = receive(method, target, headers, secrets, folder, states) { |length| socket.read(length).to_s }
  text = JSON.generate(content)
  socket.write("HTTP/1.1 #{status} #{status < 300 ? "OK" : "No"}\r\nContent-Type: application/json\r\n" \
               "Content-Length: #{text.bytesize}\r\nConnection: close\r\n\r\n#{text}")
end

if $PROGRAM_NAME == __FILE__
  secrets = ENV.values_at("ATTESTO_WEBHOOK_SECRET", "ATTESTO_WEBHOOK_SECRET_PREVIOUS")
  secrets = secrets.reject { |secret| secret.nil? || secret.empty? }
  abort "set ATTESTO_WEBHOOK_SECRET to what `attesto webhook set-config` printed" if secrets.empty?
  folder = ENV.fetch("EVENTS_DIR", "events")
  states = ENV.fetch("STATES_DIR", "states")
  FileUtils.mkdir_p([folder, states])
  server = TCPServer.new(ENV.fetch("HOST", "127.0.0.1"), Integer(ENV.fetch("PORT", "3000")))
  puts "listening on http://#{server.addr[3]}:#{server.addr[1]}#{PATH}"
  $stdout.flush
  loop do
    Thread.new(server.accept) do |socket|
      Timeout.timeout(10) { converse(socket, secrets, folder, states) }
    rescue StandardError => e
      warn e.message
    ensure
      socket.close
    end
  end
end
