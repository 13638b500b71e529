//! [`RequestHeadScanner`]: refuses bare line feeds in the heads of HTTP/1 requests.
//!
//! It follows where the heads are: after each it skips the body, by its length or its chunks. Where a head does not say clearly how
//! long the body is, the next one is looked for when the request was answered.

/// The longest line of a head that is looked at. The two that matter are shorter.
const MAX_LINE_BYTES: usize = 64;
/// How an HTTP/2 connection begins, as far as no HTTP/1 request can.
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n";

/// Follows the bytes of one connection.
pub(super) struct RequestHeadScanner {
    state: ScanState,
    line: CurrentLine,
    /// What the lines of this head say so far.
    head: HeadFacts,
    /// How many bytes of the HTTP/2 preface the connection began with.
    preface_matched: usize,
    /// Whether a bare line feed was replaced.
    has_replaced: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum ScanState {
    InHead,
    /// In a body of which this many bytes are left.
    InBody {
        left: u64,
    },
    /// In the line with the length of a chunk.
    InChunkSize,
    /// In a chunk of which this many bytes are left, with the line end after it.
    InChunk {
        left: u64,
    },
    /// In the lines after the last chunk.
    InTrailers,
    /// In a body of unknown length, when that many requests were finished.
    InUnknownBody {
        finished: u64,
    },
    /// HTTP/2 has no lines.
    Http2,
}

#[derive(Default)]
struct HeadFacts {
    has_lines: bool,
    content_length: Option<u64>,
    is_chunked: bool,
    /// Whether it is not clear how long the body is.
    is_unclear: bool,
}

/// The beginning of a line, without its end.
#[derive(Default)]
struct CurrentLine {
    text: Vec<u8>,
    is_too_long: bool,
    ends_in_cr: bool,
}

impl CurrentLine {
    /// Adds bytes without a line feed.
    fn push(&mut self, bytes: &[u8]) {
        let Some((last, before)) = bytes.split_last() else {
            return;
        };
        // A carriage return is part of the line unless a line feed follows.
        if self.ends_in_cr {
            self.push_text(b"\r");
        }
        self.ends_in_cr = *last == b'\r';
        self.push_text(if self.ends_in_cr { before } else { bytes });
    }

    fn push_text(&mut self, text: &[u8]) {
        let room = MAX_LINE_BYTES - self.text.len();
        self.is_too_long |= text.len() > room;
        self.text.extend_from_slice(&text[..text.len().min(room)]);
    }

    fn clear(&mut self) {
        self.text.clear();
        self.is_too_long = false;
        self.ends_in_cr = false;
    }
}

impl HeadFacts {
    fn read_line(&mut self, line: &CurrentLine) {
        self.has_lines = true;
        let Some(colon) = line.text.iter().position(|byte| *byte == b':') else {
            return;
        };
        let (name, value) = (&line.text[..colon], line.text[colon + 1..].trim_ascii());
        if name.eq_ignore_ascii_case(b"content-length") {
            let length = parse_number(value, 10);
            self.is_unclear |=
                line.is_too_long || length.is_none() || self.content_length.is_some();
            self.content_length = length;
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            let is_chunked = value.eq_ignore_ascii_case(b"chunked");
            self.is_unclear |= line.is_too_long || !is_chunked || self.is_chunked;
            self.is_chunked = is_chunked;
        }
    }

    /// What follows this head.
    fn next_state(&self, finished: u64) -> ScanState {
        match self.content_length {
            _ if self.is_unclear || (self.is_chunked && self.content_length.is_some()) => {
                ScanState::InUnknownBody { finished }
            }
            _ if self.is_chunked => ScanState::InChunkSize,
            None | Some(0) => ScanState::InHead,
            Some(left) => ScanState::InBody { left },
        }
    }
}

fn parse_number(text: &[u8], radix: u32) -> Option<u64> {
    let text = std::str::from_utf8(text).ok()?;
    let is_number = text.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_number.then(|| u64::from_str_radix(text, radix).ok())?
}

impl RequestHeadScanner {
    pub(super) fn new() -> Self {
        Self {
            state: ScanState::InHead,
            line: CurrentLine::default(),
            head: HeadFacts::default(),
            preface_matched: 0,
            has_replaced: false,
        }
    }

    /// Whether a bare line feed was replaced: the head that it stands in will be refused.
    pub(super) fn has_replaced(&self) -> bool {
        self.has_replaced
    }

    /// Looks at bytes that just arrived, while `in_hand` requests are being answered and `finished` were. A bare line feed in a head
    /// is replaced by a byte that no head may hold.
    pub(super) fn scan_bytes(&mut self, mut bytes: &mut [u8], in_hand: usize, finished: u64) {
        if let ScanState::InUnknownBody { finished: before } = self.state
            && in_hand == 0
            && finished > before
        {
            self.enter(ScanState::InHead);
        }
        while !bytes.is_empty() {
            let used = match self.state {
                ScanState::InUnknownBody { .. } | ScanState::Http2 => return,
                ScanState::InBody { left } => {
                    let used = skip(bytes.len(), left);
                    let left = left - used as u64;
                    self.state = ScanState::InBody { left };
                    if left == 0 {
                        self.enter(ScanState::InHead);
                    }
                    used
                }
                ScanState::InChunk { left } => {
                    let used = skip(bytes.len(), left);
                    let left = left - used as u64;
                    self.state = ScanState::InChunk { left };
                    if left == 0 {
                        self.enter(ScanState::InChunkSize);
                    }
                    used
                }
                ScanState::InHead | ScanState::InChunkSize | ScanState::InTrailers => {
                    self.scan_line(bytes, finished)
                }
            };
            bytes = &mut std::mem::take(&mut bytes)[used..];
        }
    }

    fn enter(&mut self, state: ScanState) {
        self.state = state;
        self.line.clear();
        self.head = HeadFacts::default();
    }

    /// Looks at the bytes up to the next line feed; returns how many that are.
    fn scan_line(&mut self, bytes: &mut [u8], finished: u64) -> usize {
        if self.state == ScanState::InHead && self.preface_matched < HTTP2_PREFACE.len() {
            self.match_http2_preface(bytes);
            if self.preface_matched == HTTP2_PREFACE.len() {
                self.enter(ScanState::Http2);
                return bytes.len();
            }
        }
        let Some(end) = memchr::memchr(b'\n', bytes) else {
            self.line.push(bytes);
            return bytes.len();
        };
        self.line.push(&bytes[..end]);
        if self.line.ends_in_cr {
            self.end_line(finished);
        } else if self.state == ScanState::InHead {
            bytes[end] = 0;
            self.has_replaced = true;
            self.line.push(&[0]);
        } else {
            // The library refuses such chunks.
            self.enter(ScanState::InUnknownBody { finished });
        }
        end + 1
    }

    fn end_line(&mut self, finished: u64) {
        let mut line = std::mem::take(&mut self.line);
        match self.state {
            ScanState::InHead if !line.text.is_empty() => self.head.read_line(&line),
            // Empty lines before a request are skipped.
            ScanState::InHead if !self.head.has_lines => {}
            ScanState::InHead => {
                let next = self.head.next_state(finished);
                self.enter(next);
            }
            ScanState::InChunkSize => {
                let size = line.text.split(|byte| *byte == b';').next();
                let size = size.and_then(|size| parse_number(size.trim_ascii(), 16));
                self.enter(match size {
                    Some(0) => ScanState::InTrailers,
                    // The line end after the chunk too.
                    Some(left) => ScanState::InChunk {
                        left: left.saturating_add(2),
                    },
                    None => ScanState::InUnknownBody { finished },
                });
            }
            _ if line.text.is_empty() => self.enter(ScanState::InHead),
            _ => {}
        }
        // The next line is read into the same memory.
        line.clear();
        self.line = line;
    }

    /// Compares the first bytes of the connection with the preface.
    fn match_http2_preface(&mut self, bytes: &[u8]) {
        let rest = &HTTP2_PREFACE[self.preface_matched..];
        let compared = rest.len().min(bytes.len());
        if bytes[..compared] == rest[..compared] {
            self.preface_matched += compared;
        } else {
            // Whatever else comes, this connection did not begin with it.
            self.preface_matched = HTTP2_PREFACE.len() + 1;
        }
    }
}

/// How many of the bytes that arrived are among those that are left.
fn skip(arrived: usize, left: u64) -> usize {
    usize::try_from(left).unwrap_or(usize::MAX).min(arrived)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Feeds pieces that arrive one after the other, the connection being idle before each; `|` ends a piece that
    /// completes a request.
    fn scan_pieces(pieces: &[&str]) -> String {
        let mut head = RequestHeadScanner::new();
        let mut finished = 0;
        let mut seen = String::new();
        for piece in pieces {
            let done = piece.ends_with('|');
            let mut bytes = piece.trim_end_matches('|').as_bytes().to_vec();
            head.scan_bytes(&mut bytes, 0, finished);
            finished += u64::from(done);
            seen.push_str(std::str::from_utf8(&bytes).unwrap());
        }
        seen
    }

    #[test]
    fn a_bare_line_feed_in_a_head_is_spoilt_and_nothing_else_is() {
        for (pieces, spoilt) in [
            (&["GET / HTTP/1.1\r\nA: b\r\n\r\n|"] as &[_], false),
            (&["GET / HTTP/1.1\nA: b\r\n\r\n|"], true),
            (&["GET / HTTP/1.1\r\nA: b\n\r\n"], true),
            (&["GET / HTTP/1.1\r\nA: b\r\n\n"], true),
            (&["\r\n\r\nGET / HTTP/1.1\r\nA: b\n\r\n"], true),
            (&["G", "ET / HTTP/1.1\r", "\nA: b\r\n", "\r", "\n|"], false),
            (&["GET / HTTP/1.1\r\nA: b", "\n\r\n"], true),
            // The next head on the same connection is looked at again.
            (
                &["GET / HTTP/1.1\r\n\r\n|", "GET / HTTP/1.1\r\n\r\n|"],
                false,
            ),
            (&["GET / HTTP/1.1\r\n\r\n|", "GET / HTTP/1.1\n\r\n|"], true),
            // HTTP/2 is bytes.
            (
                &["PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\n\n", "\n\n|", "\n\n"],
                false,
            ),
            (
                &["PRI * HT", "TP/2.0\r\n", "\r\nSM\r\n\r\n", "\n|", "\n"],
                false,
            ),
            (&["X\r\nPRI * HTTP/2.0\r\n\n"], true),
        ] {
            let sent = pieces.concat().replace('|', "");
            assert_eq!(scan_pieces(pieces) != sent, spoilt, "{pieces:?}");
        }
    }

    #[test]
    fn a_head_is_found_behind_every_kind_of_body() {
        const CHUNKS: &str =
            "Transfer-Encoding: CHUNKED\r\n\r\n3\r\na\nb\r\n0a;x=y\r\n0123\r\n\n789\r\n0\r\n";
        for body in [
            "\r\n".to_owned(),
            "Content-Length: 0\r\n\r\n".to_owned(),
            "content-length:  7 \r\n\r\na\nbc\n\nd".to_owned(),
            format!("{CHUNKS}\r\n"),
            format!("{CHUNKS}A: b\r\n\r\n"),
        ] {
            let first = format!("POST / HTTP/1.1\r\n{body}");
            for (second, spoilt) in [
                ("GET / HTTP/1.1\r\nA: b\r\n\r\n", false),
                ("GET / HTTP/1.1\nA: b\r\n\r\n", true),
                ("GET / HTTP/1.1\r\nA: b\n\r\n", true),
            ] {
                let sent = format!("{first}{second}");
                for cut in 0..=sent.len() {
                    let (one, two) = sent.split_at(cut);
                    let seen = scan_pieces(&[one, two]);
                    assert_eq!(seen != sent, spoilt, "{one:?} {two:?}");
                    assert!(seen.starts_with(&first), "{seen:?}");
                }
            }
        }
    }

    proptest! {
        #[test]
        fn it_makes_no_difference_in_how_many_pieces_bytes_arrive(
            pieces in proptest::collection::vec(
                proptest::sample::select(vec![
                    "\r\n", "\n", "\r", "\r\n\r\n", "GET / HTTP/1.1", "PRI * HTTP/2.0", "content-length: 3", "abc", "0", "3",
                    "Transfer-Encoding: chunked", " ", ":",
                    "a-line-that-is-longer-than-what-is-kept-of-one: xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
                ]),
                0..24,
            ),
            cuts in proptest::collection::vec(0..400_usize, 0..6),
        ) {
            let sent = pieces.concat();
            let whole = scan_pieces(&[&sent]);
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(sent.len())).collect();
            cuts.extend([0, sent.len()]);
            cuts.sort_unstable();
            let parts: Vec<_> = cuts.windows(2).map(|ends| &sent[ends[0]..ends[1]]).collect();
            prop_assert_eq!(&scan_pieces(&parts), &whole);
            let single: Vec<_> = sent.split("").collect();
            prop_assert_eq!(&scan_pieces(&single), &whole);
        }
    }

    #[test]
    fn behind_an_unclear_body_the_next_head_is_found_after_the_answer() {
        for unclear in [
            "Content-Length: 1, 1",
            "Content-Length: +1",
            "Content-Length: 1\r\nContent-Length: 1",
            "Transfer-Encoding: gzip, chunked",
            "Transfer-Encoding: chunked\r\nContent-Length: 3",
            "Transfer-Encoding: chunked\r\n\r\nx\r\n",
            "Transfer-Encoding: chunked\r\n\r\n1\na\r\n",
        ] {
            let first = format!("POST / HTTP/1.1\r\n{unclear}\r\n\r\na\nb|");
            let head = "GET / HTTP/1.1\n\r\n";
            let seen = scan_pieces(&[&first, head]);
            assert_eq!(
                seen,
                format!("{}{}", first.trim_end_matches('|'), "GET / HTTP/1.1\0\r\n")
            );
        }
    }
}
