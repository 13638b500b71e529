<?php

/**
 * A receiver for Attesto's events. PHP 8.1 or newer, with the standard extensions.
 *
 *     ATTESTO_WEBHOOK_SECRET=whsec_... php -S 127.0.0.1:3000 receiver.php
 *
 * This is PHP's built-in server, for testing; in production your web server calls this file for /hooks/attesto.
 *
 * Settings, from the environment:
 *     ATTESTO_WEBHOOK_SECRET           what `attesto webhook set-config` printed
 *     ATTESTO_WEBHOOK_SECRET_PREVIOUS  the one before it, while you change secrets (optional)
 *     EVENTS_DIR                       where events are stored for your own code (./events); not below your web root
 *     STATES_DIR                       where the newest state of each purchase is kept (./states); the same
 */

declare(strict_types=1);

const PATH = '/hooks/attesto';
const WINDOW_SECONDS = 300;
const MAX_BODY_BYTES = 4 * 1024 * 1024;

/** Whether one of our secrets signed these bytes, within the last five minutes. */
function is_from_attesto(array $secrets, string $header, string $body, ?int $now = null): bool
{
    $timestamp = '';
    $given = [];
    foreach (explode(',', $header) as $part) {
        [$name, $value] = array_pad(explode('=', trim($part), 2), 2, '');
        if ($name === 't') {
            $timestamp = $value;
        } elseif ($name === 'v1') {
            $given[] = $value;
        }
    }
    if (preg_match('/\A[0-9]{1,12}\z/', $timestamp) !== 1) {
        return false;
    }
    if (abs(($now ?? time()) - (int) $timestamp) > WINDOW_SECONDS) {
        return false;
    }
    $fits = false;
    foreach ($secrets as $secret) {
        $expected = hash_hmac('sha256', $timestamp . '.' . $body, $secret);
        foreach ($given as $value) {
            $fits = hash_equals($expected, $value) || $fits;
        }
    }
    return $fits;
}

/**
 * Stores an event for your own code. False if it is already stored.
 *
 * Here an event is a file that is created atomically. In your application, use a table with the event's id as its
 * primary key, and `INSERT ... ON CONFLICT DO NOTHING`, in one transaction with what the event changes.
 */
function keep(string $folder, string $eventId, string $body): bool
{
    $target = "$folder/$eventId.json";
    $draft = $folder . '/.draft-' . bin2hex(random_bytes(16));
    try {
        $file = @fopen($draft, 'xb');
        if ($file === false) {
            throw new RuntimeException("cannot write into $folder");
        }
        if (fwrite($file, $body) !== strlen($body) || !fsync($file) || !fclose($file)) {
            throw new RuntimeException("cannot write $draft");
        }
        if (@link($draft, $target)) {
            return true;
        }
        clearstatcache();
        if (is_file($target)) {
            return false;
        }
        throw new RuntimeException("cannot write $target");
    } finally {
        @unlink($draft);
    }
}

/**
 * Keeps the newest state of the event's purchase, and returns what is kept; null if nothing is known yet.
 *
 * Newest is the latest `asOf`, and of equal ones the higher `sequence`; an event without a state changes nothing. Here the
 * state is a file. In your application it is a row, and all of this is one `INSERT ... ON CONFLICT DO UPDATE ... WHERE`.
 */
function keep_state(string $folder, array $event): ?array
{
    $subject = $event['subject'] ?? null;
    if (!is_array($subject)) {
        return null;
    }
    $target = $folder . '/' . hash('sha256', ($event['source'] ?? '') . ' ' . ($subject['key'] ?? '')) . '.json';
    $lock = @fopen("$folder/.lock", 'c');
    if ($lock === false || !flock($lock, LOCK_EX)) {
        throw new RuntimeException("cannot write into $folder");
    }
    try {
        $kept = is_file($target) ? json_decode((string) file_get_contents($target), true) : null;
        $state = $event['state'] ?? null;
        // Every time has the same form, so that their order is that of the text.
        $isNewer = $state !== null && ($kept === null
            || [$state['asOf'], $event['sequence']] > [$kept['state']['asOf'], $kept['sequence']]);
        if ($isNewer) {
            $kept = ['sequence' => $event['sequence'], 'state' => $state];
            $isWritten = file_put_contents("$target.draft", json_encode($kept)) !== false;
            if (!$isWritten || !rename("$target.draft", $target)) {
                throw new RuntimeException("cannot write $target");
            }
        }
        return $kept['state'] ?? null;
    } finally {
        fclose($lock);
    }
}

/** The gate: may the customer use the product now? */
function is_entitled(array $state, ?DateTimeImmutable $now = null): bool
{
    $end = $state['entitledUntil'];
    return $state['entitled'] && ($end === null || ($now ?? new DateTimeImmutable()) < new DateTimeImmutable($end));
}

/** The status and the content of the answer. */
function receive(array $secrets, string $folder, string $states): array
{
    $target = explode('?', $_SERVER['REQUEST_URI'] ?? '')[0];
    if (($_SERVER['REQUEST_METHOD'] ?? '') !== 'POST' || $target !== PATH) {
        return [404, ['error' => 'not here']];
    }
    // The exact bytes that arrived, before parsing; one more than allowed, to detect a body that is too large.
    $body = (string) file_get_contents('php://input', false, null, 0, MAX_BODY_BYTES + 1);
    if (strlen($body) > MAX_BODY_BYTES) {
        return [413, ['error' => 'too long']];
    }
    if (!is_from_attesto($secrets, $_SERVER['HTTP_X_ATTESTO_SIGNATURE'] ?? '', $body)) {
        return [401, ['error' => 'not signed by Attesto']];
    }
    $event = json_decode($body, true);
    $eventId = is_array($event) ? ($event['eventId'] ?? null) : null;
    if (!is_string($eventId) || preg_match('/\Aevt_[0-9A-Z]{26}\z/', $eventId) !== 1) {
        return [400, ['error' => 'no event']];
    }
    try {
        $isNew = keep($folder, $eventId, $body);
        $state = keep_state($states, $event);
        $entitled = $state === null ? null : is_entitled($state);
        return [200, ['eventId' => $eventId, 'isNew' => $isNew, 'entitled' => $entitled]];
    } catch (RuntimeException $problem) {
        // Attesto will send it again.
        error_log("cannot keep $eventId: " . $problem->getMessage());
        return [500, ['error' => 'cannot keep it']];
    }
}

$secrets = array_values(array_filter([
    (string) getenv('ATTESTO_WEBHOOK_SECRET'),
    (string) getenv('ATTESTO_WEBHOOK_SECRET_PREVIOUS'),
], fn (string $secret): bool => $secret !== ''));
$folder = getenv('EVENTS_DIR') ?: 'events';
$states = getenv('STATES_DIR') ?: 'states';
if ($secrets === []) {
    error_log('set ATTESTO_WEBHOOK_SECRET to what `attesto webhook set-config` printed');
    [$status, $content] = [500, ['error' => 'not set up']];
} else {
    foreach ([$folder, $states] as $one) {
        is_dir($one) || @mkdir($one, 0700, true);
    }
    [$status, $content] = receive($secrets, $folder, $states);
}
http_response_code($status);
header('Content-Type: application/json');
echo json_encode($content);
