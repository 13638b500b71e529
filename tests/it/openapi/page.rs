//! The OpenAPI description as a page: docs/api.md.

use std::fmt::Write as _;

use serde_json::Value;

use super::{fields, operations};

/// The whole page as Markdown.
pub(crate) fn page(description: &Value) -> String {
    let mut page = String::from(
        "<!-- Made from the description of the API: attesto openapi. A test keeps it so. -->\n\n# The API\n\n",
    );
    let mut write = |text: String| page.push_str(&text);
    write(format!("{}\n\n", text(&description["info"], "description")));
    write(
        "The same as a document for machines: `/openapi.json` of a running service, or `attesto openapi`. To generate a client \
         from it: [Clients](clients/README.md). The reasons behind an error and their cures: [Error codes](errors.md).\n\n"
            .to_owned(),
    );
    let operations = operations(description);
    for tag in description["tags"].as_array().into_iter().flatten() {
        write(format!("{}\n\n", text(tag, "description")));
        let of_tag = |operation: &Value| operation["tags"][0] == tag["name"];
        for (what, path, operation) in operations.iter().filter(|(_, _, it)| of_tag(it)) {
            let title = title(what, path);
            let link = format!("[`{title}`](#{})", slug(&title));
            write(format!("- {link}: {}\n", text(operation, "summary")));
        }
        write("\n".to_owned());
    }
    for tag in description["tags"].as_array().into_iter().flatten() {
        for (what, path, operation) in &operations {
            if operation["tags"][0] == tag["name"] {
                write(route(&title(what, path), operation, description));
            }
        }
    }
    write("## Shapes\n\nA field is always there unless it says otherwise.\n\n".to_owned());
    for (name, schema) in fields(&description["components"]["schemas"]) {
        write(shape(name, schema, description));
    }
    format!("{}\n", page.trim_end())
}

fn title(what: &str, path: &str) -> String {
    let method = what.split(' ').next().unwrap_or_default();
    format!("{} {path}", method.to_uppercase())
}

fn slug(heading: &str) -> String {
    let kept = heading.to_lowercase().replace(' ', "-");
    kept.chars()
        .filter(|it| it.is_alphanumeric() || matches!(it, '-' | '_'))
        .collect()
}

fn text<'a>(of: &'a Value, name: &str) -> &'a str {
    of[name].as_str().unwrap_or_default()
}

/// In one line, for a cell of a table.
fn cell(text: &str) -> String {
    text.replace("\n\n- ", "<br>")
        .replace("\n- ", "<br>")
        .replace('\n', " ")
        .replace('|', "\\|")
}

fn route(title: &str, operation: &Value, description: &Value) -> String {
    let mut page = format!(
        "## `{title}`\n\n**{}**\n\n{}\n\n",
        text(operation, "summary"),
        text(operation, "description")
    );
    for (name, _) in fields(&operation["security"][0]) {
        let scheme = &description["components"]["securitySchemes"][name];
        let _ = write!(
            page,
            "`Authorization: Bearer …`: {}\n\n",
            text(scheme, "description")
        );
    }
    for parameter in operation["parameters"].as_array().into_iter().flatten() {
        let _ = write!(
            page,
            "`{}` in the {}: {}\n\n",
            text(parameter, "name"),
            text(parameter, "in"),
            text(parameter, "description")
        );
    }
    if let Some(body) = operation.get("requestBody") {
        let content = &body["content"]["application/json"];
        let _ = write!(
            page,
            "### {title}: ask\n\n{}: {}\n\n",
            kind(&content["schema"]),
            text(body, "description")
        );
        page.push_str(&examples(&content["examples"], |_| true));
    }
    let _ = write!(page, "### {title}: answers\n\n");
    let mut errors = String::new();
    for (status, answer) in fields(&operation["responses"]) {
        let content = &answer["content"]["application/json"];
        if text(&content["schema"], "$ref").ends_with("/ErrorBody") {
            for (_, example) in fields(&content["examples"]) {
                let _ = writeln!(
                    errors,
                    "| {status} | `{}` | {} | {} |",
                    text(&example["value"], "error"),
                    cell(text(example, "summary")),
                    cell(text(&example["value"], "message"))
                );
            }
            continue;
        }
        let _ = write!(
            page,
            "**{status}**, {}: {}.\n\n",
            kind(&content["schema"]),
            text(answer, "description")
        );
        // A refusal is identified by its error code in the table of answers; one example shows its
        // shape.
        let mut noes = 0;
        page.push_str(&examples(&content["examples"], |value| {
            noes += usize::from(value["valid"] == false);
            value["valid"] != false || noes == 1
        }));
    }
    let _ = write!(
        page,
        "Errors, each an [`ErrorBody`](#errorbody):\n\n| status | `error` | when | `message` |\n|---|---|---|---|\n{errors}\n"
    );
    page
}

/// The selected examples, valid ones before refusals.
fn examples(examples: &Value, mut wanted: impl FnMut(&Value) -> bool) -> String {
    let mut page = String::new();
    let (noes, others): (Vec<_>, Vec<_>) =
        fields(examples).partition(|(_, example)| example["value"]["valid"] == false);
    let all = others.into_iter().chain(noes);
    for (_, example) in all.filter(|(_, example)| wanted(&example["value"])) {
        let value = serde_json::to_string_pretty(&example["value"]).expect("JSON");
        let summary = text(example, "summary").trim_end_matches('.');
        let _ = write!(page, "{summary}:\n\n```json\n{value}\n```\n\n");
    }
    page
}

fn shape(name: &str, schema: &Value, description: &Value) -> String {
    let mut page = format!("### {name}\n\n{}\n\n", text(schema, "description"));
    let choices = schema["oneOf"].as_array().into_iter().flatten();
    let choices: Vec<_> = choices.map(kind).collect();
    if !choices.is_empty() {
        let _ = write!(page, "One of {}.\n\n", choices.join(" and "));
    }
    if fields(&schema["properties"]).count() == 0 {
        return page;
    }
    page.push_str("| field | is | |\n|---|---|---|\n");
    let required: Vec<_> = schema["required"]
        .as_array()
        .into_iter()
        .flatten()
        .collect();
    for (field, property) in fields(&schema["properties"]) {
        let may_be_missing = if required.iter().any(|it| *it == field) {
            ""
        } else {
            ", or left out"
        };
        let _ = writeln!(
            page,
            "| `{field}` | {}{may_be_missing} | {} |",
            cell(&kind(property)),
            cell(&about(property, description))
        );
    }
    page.push('\n');
    page
}

/// The description of a field; for a referenced type its first sentence.
fn about(property: &Value, description: &Value) -> String {
    let choices = property["oneOf"].as_array().into_iter().flatten();
    let target = choices
        .chain([property])
        .find_map(|it| it["$ref"].as_str()?.strip_prefix('#'))
        .and_then(|pointer| description.pointer(pointer));
    let all = text(target.unwrap_or(property), "description");
    match target {
        Some(_) => all.split("\n\n").next().unwrap_or_default().to_owned(),
        None => all.to_owned(),
    }
}

/// The type of a value, in a few words.
fn kind(schema: &Value) -> String {
    if let Some(name) = text(schema, "$ref").strip_prefix("#/components/schemas/") {
        return format!("[`{name}`](#{})", slug(name));
    }
    if let Some(choices) = schema["oneOf"].as_array() {
        // null is first in the schema, and reads better last.
        let kinds: Vec<_> = choices.iter().rev().map(kind).collect();
        return kinds.join(" or ");
    }
    if let [only] = schema["enum"].as_array().map_or(&[][..], Vec::as_slice) {
        return format!("`{only}`");
    }
    let names: Vec<_> = match &schema["type"] {
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect(),
        kind => kind.as_str().into_iter().collect(),
    };
    let mut told = if names.is_empty() {
        "anything".to_owned()
    } else if names == ["array"] {
        format!("list of {}", kind(&schema["items"]))
    } else {
        names.join(" or ")
    };
    match (schema["minLength"].as_u64(), schema["maxLength"].as_u64()) {
        (Some(least), Some(most)) => {
            let _ = write!(told, " of {least} to {most} characters");
        }
        (Some(least), None) => {
            let _ = match least {
                1 => write!(told, ", not empty"),
                more => write!(told, " of at least {more} characters"),
            };
        }
        _ => {}
    }
    if schema["format"] == "date-time" {
        told = told.replace("string", "date");
    }
    told
}
