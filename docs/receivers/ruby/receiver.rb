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
#     HOST, PORT                       where to listen (127.0.0.1, 3000); behind your web server, which ends TLS
#
# In a Rails or Sinatra application take `attesto?` and `keep` as they are, and give them `request.raw_post` or
# `request.body.read`; the small server at the end is only there so that this file can run alone.

require "fileutils"
require "json"
require "openssl"
require "securerandom"
require "socket"
require "timeout"

PATH = "/hooks/attesto"
WINDOW_SECONDS = 300
MAX_BODY_BYTES = 4 * 1024 * 1024
MAX_HEAD_BYTES = 32 * 1024

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

def event_id_of(body)
  event = JSON.parse(body.dup.force_encoding(Encoding::UTF_8))
  id = event["eventId"] if event.is_a?(Hash)
  id if id.is_a?(String) && id.match?(/\Aevt_[0-9A-Z]{26}\z/)
rescue JSON::ParserError
  nil
end

# The status and the content of the answer.
def receive(method, target, headers, secrets, folder)
  return [404, { error: "not here" }] unless method == "POST" && target.split("?").first == PATH
  return [411, { error: "how long?" }] unless headers["content-length"]&.match?(/\A[0-9]{1,12}\z/)

  length = headers["content-length"].to_i
  return [413, { error: "too long" }] if length > MAX_BODY_BYTES

  body = yield length
  # The exact bytes that arrived, before parsing.
  return [401, { error: "not signed by Attesto" }] unless attesto?(secrets, headers["x-attesto-signature"] || "", body)

  event_id = event_id_of(body)
  return [400, { error: "no event" }] unless event_id

  [200, { eventId: event_id, isNew: keep(folder, event_id, body) }]
rescue SystemCallError => e
  # Attesto will send it again.
  warn "cannot keep an event: #{e.message}"
  [500, { error: "cannot keep it" }]
end

# One request for each connection.
def converse(socket, secrets, folder)
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

  status, content = receive(method, target, headers, secrets, folder) { |length| socket.read(length).to_s }
  text = JSON.generate(content)
  socket.write("HTTP/1.1 #{status} #{status < 300 ? "OK" : "No"}\r\nContent-Type: application/json\r\n" \
               "Content-Length: #{text.bytesize}\r\nConnection: close\r\n\r\n#{text}")
end

if $PROGRAM_NAME == __FILE__
  secrets = ENV.values_at("ATTESTO_WEBHOOK_SECRET", "ATTESTO_WEBHOOK_SECRET_PREVIOUS")
  secrets = secrets.reject { |secret| secret.nil? || secret.empty? }
  abort "set ATTESTO_WEBHOOK_SECRET to what `attesto webhook set-config` printed" if secrets.empty?
  folder = ENV.fetch("EVENTS_DIR", "events")
  FileUtils.mkdir_p(folder)
  server = TCPServer.new(ENV.fetch("HOST", "127.0.0.1"), Integer(ENV.fetch("PORT", "3000")))
  puts "listening on http://#{server.addr[3]}:#{server.addr[1]}#{PATH}"
  $stdout.flush
  loop do
    Thread.new(server.accept) do |socket|
      Timeout.timeout(10) { converse(socket, secrets, folder) }
    rescue StandardError => e
      warn e.message
    ensure
      socket.close
    end
  end
end
