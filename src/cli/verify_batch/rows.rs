//! Reads the purchases that `attesto verify batch` is given: JSON lines, or CSV with a header line.
//!
//! The fields are those of `POST /v1/apple/verify` and `POST /v1/google/verify`, and are checked in the same way.

use std::io::{self, BufRead, Read};

use serde_json::{Map, Value};

use crate::base::id::TenantId;
use crate::crypto::token::{encode_hex, sha256};
use crate::http::json::{FromJson, read_json};
use crate::stores::apple::receipt::find_receipt_purchases;
use crate::stores::apple::verify::AppleVerifyRequest;
use crate::stores::google::GoogleVerifyRequest;

/// The columns and fields that a row may have.
pub(super) const FIELDS: [&str; 11] = [
    "reference",
    "transactionId",
    "signedTransaction",
    "receipt",
    "environment",
    "refresh",
    "purchaseToken",
    "packageName",
    "type",
    "productId",
    "expectedAppUserId",
];

/// A purchase to verify.
#[derive(Clone, Debug)]
pub(super) struct BatchRow {
    /// Its line in the file, from 1 on.
    pub(super) line: u64,
    /// The caller's own name for it.
    pub(super) reference: Option<String>,
    /// A hash of the tenant and of the row: tells whether an answer is this row's.
    pub(super) input_hash: String,
    /// Of a receipt: the newest transaction of each of the other purchases in it.
    pub(super) other_transaction_ids: Vec<String>,
    pub(super) question: BatchQuestion,
}

#[derive(Clone, Debug)]
pub(super) enum BatchQuestion {
    Apple(AppleVerifyRequest),
    Google(GoogleVerifyRequest),
}

impl BatchQuestion {
    pub(super) fn store(&self) -> &'static str {
        match self {
            Self::Apple(_) => "apple",
            Self::Google(_) => "google",
        }
    }
}

/// What is wrong with a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RowProblem {
    pub(super) line: u64,
    pub(super) text: String,
}

/// Whose purchases the rows are.
#[derive(Clone, Debug)]
pub(super) struct RowDefaults<'a> {
    pub(super) tenant: &'a TenantId,
    /// The tenant's app at Google, for rows that name none.
    pub(super) package_name: Option<&'a str>,
}

/// The rows of a file, one after the other. The file is JSON lines if its first character is `{`, else CSV.
pub(super) fn read_rows<'a>(
    mut input: impl BufRead + 'a,
    defaults: RowDefaults<'a>,
) -> io::Result<Box<dyn Iterator<Item = Result<BatchRow, RowProblem>> + 'a>> {
    // A byte order mark, as spreadsheets write it.
    if input.fill_buf()?.starts_with(b"\xef\xbb\xbf") {
        input.consume(3);
    }
    let is_json = input.fill_buf()?.trim_ascii_start().starts_with(b"{");
    let objects: Box<dyn Iterator<Item = Result<RowObject, RowProblem>>> = if is_json {
        Box::new(read_json_lines(input))
    } else {
        Box::new(read_csv(input))
    };
    Ok(Box::new(objects.map(move |object| {
        let RowObject { line, fields } = object?;
        build_row(line, fields, &defaults).map_err(|text| RowProblem { line, text })
    })))
}

struct RowObject {
    line: u64,
    fields: Map<String, Value>,
}

fn read_json_lines(input: impl BufRead) -> impl Iterator<Item = Result<RowObject, RowProblem>> {
    (1..).zip(input.lines()).filter_map(|(line, text)| {
        let problem = |text: String| Some(Err(RowProblem { line, text }));
        match text {
            Ok(text) if text.trim().is_empty() => None,
            Ok(text) => match serde_json::from_str(&text) {
                Ok(fields) => Some(Ok(RowObject { line, fields })),
                Err(error) => problem(format!("is not a JSON object: {error}")),
            },
            Err(error) => problem(format!("cannot be read: {error}")),
        }
    })
}

fn read_csv(input: impl Read) -> impl Iterator<Item = Result<RowObject, RowProblem>> {
    let mut reader = csv::ReaderBuilder::new()
        .trim(csv::Trim::All)
        .from_reader(DropCarriageReturns(input));
    let names = reader.headers().cloned();
    let mut header_problem = names.as_ref().err().map(|error| RowProblem {
        line: 1,
        text: error.to_string(),
    });
    let names = names.unwrap_or_default();
    let is_readable = header_problem.is_none();
    let mut records = reader.into_records();
    std::iter::from_fn(move || {
        if let Some(problem) = header_problem.take() {
            return Some(Err(problem));
        }
        let record = records.next().filter(|_| is_readable)?;
        Some(match record {
            Ok(record) => {
                let line = record.position().map_or(0, csv::Position::line);
                let cells = names.iter().zip(&record);
                let fields = cells
                    .filter(|(_, cell)| !cell.is_empty())
                    .map(|(name, cell)| (name.to_owned(), cell_value(name, cell)));
                Ok(RowObject {
                    line,
                    fields: fields.collect(),
                })
            }
            Err(error) => Err(RowProblem {
                line: error.position().map_or(0, csv::Position::line),
                text: error.to_string(),
            }),
        })
    })
}

/// The reader counts a line that ends with CR and LF only when the next record begins, so that every line would be one too small.
struct DropCarriageReturns<R>(R);

impl<R: Read> Read for DropCarriageReturns<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let length = self.0.read(buffer)?;
            let mut kept = 0;
            for position in 0..length {
                if buffer[position] != b'\r' {
                    buffer[kept] = buffer[position];
                    kept += 1;
                }
            }
            if kept > 0 || length == 0 {
                return Ok(kept);
            }
        }
    }
}

/// The only field that is not a string is a boolean.
fn cell_value(name: &str, cell: &str) -> Value {
    match cell.to_ascii_lowercase().as_str() {
        "true" if name == "refresh" => true.into(),
        "false" if name == "refresh" => false.into(),
        _ => cell.into(),
    }
}

fn build_row(
    line: u64,
    mut fields: Map<String, Value>,
    defaults: &RowDefaults<'_>,
) -> Result<BatchRow, String> {
    let input_hash = hash_row(defaults.tenant, &fields);
    let unknown: Vec<_> = fields
        .keys()
        .filter(|name| !FIELDS.contains(&name.as_str()))
        .map(|name| format!("`{}`", name.escape_debug()))
        .collect();
    if !unknown.is_empty() {
        return Err(format!(
            "has the unknown field {}; known are {}",
            unknown.join(", "),
            FIELDS.join(", ")
        ));
    }
    let reference = match fields.remove("reference") {
        None | Some(Value::Null) => None,
        Some(Value::String(text)) => Some(text),
        Some(other) => Some(other.to_string()),
    };
    let mut other_transaction_ids = Vec::new();
    if let Some(receipt) = fields.remove("receipt") {
        let receipt = receipt.as_str().ok_or("receipt must be a string")?;
        let purchases =
            find_receipt_purchases(receipt).map_err(|error| format!("receipt {error}"))?;
        let mut ids = purchases.into_iter().map(|one| one.transaction_id);
        if let Some(newest) = ids.next() {
            fields.insert("transactionId".to_owned(), newest.into());
        }
        other_transaction_ids.extend(ids);
        // A receipt is old: what its transaction says of itself is not what the subscription is worth now.
        fields.entry("refresh").or_insert(true.into());
    }
    let question = if fields.contains_key("purchaseToken") {
        if let Some(name) = defaults.package_name {
            fields.entry("packageName").or_insert(name.into());
        }
        parse_question(&fields).map(BatchQuestion::Google)?
    } else {
        parse_question(&fields).map(BatchQuestion::Apple)?
    };
    Ok(BatchRow {
        line,
        reference,
        input_hash,
        other_transaction_ids,
        question,
    })
}

fn parse_question<T: FromJson>(fields: &Map<String, Value>) -> Result<T, String> {
    let bytes = serde_json::to_vec(fields).map_err(|error| error.to_string())?;
    read_json(&bytes).map_err(|problem| problem.issues_text())
}

fn hash_row(tenant: &TenantId, fields: &Map<String, Value>) -> String {
    let fields = fields.iter().map(|(name, value)| format!("{name}={value}"));
    let row: Vec<_> = [tenant.to_string()].into_iter().chain(fields).collect();
    let row = row.join("\n");
    encode_hex(&sha256(row.as_bytes())[..8])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock::Timestamp;
    use crate::stores::apple::account::EnvironmentChoice;
    use crate::stores::apple::verify::PurchaseRef;

    fn read(text: &str) -> Vec<Result<BatchRow, RowProblem>> {
        let tenant = TenantId::mint(Timestamp::from_millis(1));
        let defaults = RowDefaults {
            tenant: &tenant,
            package_name: Some("com.example.app"),
        };
        read_rows(text.as_bytes(), defaults).unwrap().collect()
    }

    #[test]
    fn both_formats_give_the_same_rows() {
        let csv = "\u{feff}reference,transactionId,purchaseToken,environment,refresh\r\nu-1,2000,,sandbox,TRUE\r\n\"u,2\",,token,,\r\n";
        let json = "{\"reference\":\"u-1\",\"transactionId\":\"2000\",\"environment\":\"sandbox\",\"refresh\":true}\n\n{\"reference\":\"u,2\",\"purchaseToken\":\"token\"}";
        for (text, lines) in [(csv, [2, 3]), (json, [1, 3])] {
            let rows: Vec<_> = read(text).into_iter().map(Result::unwrap).collect();
            let found: Vec<_> = rows.iter().map(|row| row.line).collect();
            assert_eq!(found, lines);
            assert_eq!(rows[1].reference.as_deref(), Some("u,2"));
            let BatchQuestion::Apple(apple) = &rows[0].question else {
                panic!("{rows:?}");
            };
            assert_eq!(
                apple.purchase,
                PurchaseRef::TransactionId("2000".to_owned())
            );
            assert_eq!(apple.environment, Some(EnvironmentChoice::Sandbox));
            assert!(apple.refresh);
            let BatchQuestion::Google(google) = &rows[1].question else {
                panic!("{rows:?}");
            };
            assert_eq!(google.package_name, "com.example.app");
            assert_eq!(google.purchase_token, "token");
        }
    }

    #[test]
    fn what_is_wrong_with_a_row_is_said_with_its_line() {
        for (text, line, said) in [
            (
                "{\"transactionID\":\"1\"}",
                1,
                "unknown field `transactionID`",
            ),
            ("{\"reference\":\"x\"}", 1, "give transactionId"),
            ("{\"transactionId\":\"1\"}\n{", 2, "is not a JSON object"),
            ("{\"receipt\":\"MIIB\"}", 1, "receipt is not an app receipt"),
            ("transactionId,nothing\n1,x\n", 2, "unknown field `nothing`"),
            ("transactionId\n1,2\n", 2, "found record with 2 fields"),
            ("purchaseToken,type\nt,gift\n", 2, "type must be"),
        ] {
            let problem = read(text).into_iter().find_map(Result::err);
            let problem = problem.unwrap_or_else(|| panic!("{text}"));
            assert_eq!(problem.line, line, "{text}");
            assert!(problem.text.contains(said), "{text}: {}", problem.text);
        }
    }

    #[test]
    fn a_hash_is_of_one_row_of_one_tenant() {
        let hashes: Vec<_> = read("{\"transactionId\":\"1\"}\n{\"transactionId\":\"2\"}")
            .into_iter()
            .map(|row| row.unwrap().input_hash)
            .collect();
        assert_eq!(hashes[0].len(), 16);
        assert_ne!(hashes[0], hashes[1]);
        let other = TenantId::mint(Timestamp::from_millis(2));
        let fields = [("transactionId".to_owned(), "1".into())];
        assert_ne!(hash_row(&other, &fields.into_iter().collect()), hashes[0]);
    }
}
