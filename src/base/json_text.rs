//! Whether a JSON text can be stored by Postgres as `jsonb`, found out in one pass and before it is parsed.
//!
//! Postgres refuses what a JSON parser accepts: numbers with an exponent or a length beyond its own, and half of a surrogate
//! pair. A text that is stored only to be refused would be sent again and again. (NUL in strings, which it refuses too, is
//! replaced when it is stored.)

/// As deep as the parser goes.
const MAX_DEPTH: usize = 127;
/// Digits, sign and point of a number. Postgres takes 16,383 after the point, and the exponent counts towards those.
const MAX_NUMBER_BYTES: usize = 1000;
/// Far beyond what a 64-bit float can be, and far within what Postgres takes.
const MAX_EXPONENT: u32 = 1000;

/// Why a JSON text cannot be stored. Positions are bytes from the beginning, counted from 1; nothing of the text is repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JsonTextError {
    /// A number has too many characters.
    #[error("the number at byte {0} has more than {MAX_NUMBER_BYTES} characters")]
    LongNumber(usize),
    /// The exponent of a number is too large or too small.
    #[error("the exponent of the number at byte {0} is beyond {MAX_EXPONENT}")]
    LargeExponent(usize),
    /// A `\u` escape is half of a surrogate pair.
    #[error("the escape at byte {0} is half of a surrogate pair: an unpaired hex escape")]
    LoneSurrogate(usize),
    /// Arrays and objects are nested too deeply.
    #[error("it is nested more than {MAX_DEPTH} deep at byte {0}: beyond the recursion limit")]
    TooDeep(usize),
}

/// Checks a text. What is no JSON at all may pass: the parser reports it.
pub(crate) fn check_storable(text: &str) -> Result<(), JsonTextError> {
    let bytes = text.as_bytes();
    let (mut at, mut depth) = (0, 0_usize);
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'"' => at = skip_string(bytes, at + 1)?,
            b'-' | b'0'..=b'9' => at = skip_number(bytes, at)?,
            b'{' | b'[' => {
                depth += 1;
                at += 1;
                if depth > MAX_DEPTH {
                    return Err(JsonTextError::TooDeep(at));
                }
            }
            b'}' | b']' => {
                depth = depth.saturating_sub(1);
                at += 1;
            }
            _ => at += 1,
        }
    }
    Ok(())
}

/// From after a string's first quote to after its last.
fn skip_string(bytes: &[u8], mut at: usize) -> Result<usize, JsonTextError> {
    loop {
        let Some(length) = bytes
            .get(at..)
            .and_then(|rest| memchr::memchr2(b'"', b'\\', rest))
        else {
            return Ok(bytes.len());
        };
        at += length;
        if bytes[at] == b'"' {
            return Ok(at + 1);
        }
        match read_unicode_escape(bytes, at) {
            Some(0xd800..=0xdbff) => {
                let low = read_unicode_escape(bytes, at + 6);
                if !low.is_some_and(|low| (0xdc00..=0xdfff).contains(&low)) {
                    return Err(JsonTextError::LoneSurrogate(at + 1));
                }
                at += 12;
            }
            Some(0xdc00..=0xdfff) => return Err(JsonTextError::LoneSurrogate(at + 1)),
            Some(_) => at += 6,
            None => at += 2,
        }
    }
}

/// The number of `\u1234` at this place, if that is there.
fn read_unicode_escape(bytes: &[u8], at: usize) -> Option<u32> {
    let digits = bytes.get(at..at + 6)?.strip_prefix(b"\\u")?;
    let mut digits = digits.iter().map(|digit| char::from(*digit).to_digit(16));
    digits.try_fold(0, |number, digit| Some(number * 16 + digit?))
}

fn skip_number(bytes: &[u8], start: usize) -> Result<usize, JsonTextError> {
    let is_part = |byte: &u8| matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E');
    let rest = &bytes[start..];
    let length = rest.iter().position(|byte| !is_part(byte));
    let number = &rest[..length.unwrap_or(rest.len())];
    if number.len() > MAX_NUMBER_BYTES {
        return Err(JsonTextError::LongNumber(start + 1));
    }
    let mark = number.iter().position(|byte| matches!(byte, b'e' | b'E'));
    if let Some(mark) = mark {
        let digits = number[mark + 1..]
            .iter()
            .filter(|byte| byte.is_ascii_digit());
        let exponent = digits.fold(0_u32, |exponent, digit| {
            exponent
                .saturating_mul(10)
                .saturating_add(u32::from(digit - b'0'))
        });
        if exponent > MAX_EXPONENT {
            return Err(JsonTextError::LargeExponent(start + 1));
        }
    }
    Ok(start + number.len())
}

#[cfg(test)]
mod tests {
    use super::JsonTextError::*;
    use super::*;

    #[test]
    fn what_postgres_refuses_is_found_and_nothing_else() {
        let digits = |count| "7".repeat(count);
        let deep = |depth| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        for (text, expected) in [
            (r#"{"a":[1,-2.5e3,"x",null,true]}"#.to_owned(), Ok(())),
            (String::new(), Ok(())),
            ("\"unfinished".to_owned(), Ok(())),
            ("\"unfinished\\".to_owned(), Ok(())),
            ("1e1000".to_owned(), Ok(())),
            ("1E-1000".to_owned(), Ok(())),
            ("1e-400000".to_owned(), Err(LargeExponent(1))),
            ("[1e1001]".to_owned(), Err(LargeExponent(2))),
            (format!("1e{}", digits(900)), Err(LargeExponent(1))),
            (digits(1000), Ok(())),
            (format!(" {}", digits(1001)), Err(LongNumber(2))),
            (format!("0.{}", digits(20_000)), Err(LongNumber(1))),
            // In a string they are text.
            (r#""1e-400000""#.to_owned(), Ok(())),
            (format!("\"{}\"", digits(20_000)), Ok(())),
            (r#""\"1e-400000""#.to_owned(), Ok(())),
            (r#""\ud83d\ude00""#.to_owned(), Ok(())),
            (r#""\uD83D\uDE00\u0000\u00e9""#.to_owned(), Ok(())),
            (r#""\\ud83d""#.to_owned(), Ok(())),
            (r#""\ud83d""#.to_owned(), Err(LoneSurrogate(2))),
            (r#""\ud83d\u0041""#.to_owned(), Err(LoneSurrogate(2))),
            (r#"{"\ude00":1}"#.to_owned(), Err(LoneSurrogate(3))),
            (deep(127), Ok(())),
            (deep(128), Err(TooDeep(128))),
            ("[{".repeat(100_000), Err(TooDeep(128))),
            ("[]".repeat(1000), Ok(())),
        ] {
            let start: String = text.chars().take(40).collect();
            assert_eq!(check_storable(&text), expected, "{start}");
        }
    }
}
