//! `docs/api.md`, written from the description of the API.

use std::fmt::Write;

use serde_json::Value;

const HEAD: &str = "# The API of a lab

HTTP and JSON on the lab's Unix socket, `control.sock` in its run folder ([architecture.md](architecture.md)); the command
line is a client of it and uses nothing else. The socket has mode 0600, and the lab answers only its own user and root.

```sh
curl --unix-socket /run/hopyard/LAB/control.sock http://lab/v1/nodes
```

This page and the OpenAPI 3.1 document that a lab serves at `/v1/openapi.json` (`vmm openapi` prints it) are generated from
the code; the page by the test `the_reference_is_current` of `vmm/src/api/reference.rs` when run with `UPDATE=1`. The path has the version: what
is below `/v1` gains members, it does not lose any.

Every error is a problem document (RFC 9457, `application/problem+json`, [Problem](#problem)), whatever was wrong: a name, a value,
a body that does not parse, a path or method that is not there; only what is no HTTP gets a bare status. A request has at most 64 KiB of head and 1 MiB of body, and is
answered within 60 seconds unless its answer is a stream.
";

/// The page.
fn page(document: &Value) -> String {
    let mut page = HEAD.to_owned();
    for tag in array(&document["tags"]) {
        writeln!(page, "\n## {}", text(&tag["description"])).unwrap();
        for (path, item) in object(&document["paths"]) {
            for (method, operation) in object(item) {
                if array(&operation["tags"]).any(|name| *name == tag["name"]) {
                    request(&mut page, path, method, operation);
                }
            }
        }
    }
    page.push_str("\n## Types\n");
    for (name, schema) in object(&document["components"]["schemas"]) {
        writeln!(page, "\n### {name}\n").unwrap();
        type_section(&mut page, schema);
    }
    page
}

fn request(page: &mut String, path: &str, method: &str, operation: &Value) {
    writeln!(page, "\n### {} {path}\n", method.to_uppercase()).unwrap();
    writeln!(
        page,
        "{}.",
        text(&operation["summary"]).trim_end_matches('.')
    )
    .unwrap();
    if let Some(more) = operation["description"].as_str() {
        writeln!(page, "\n{more}").unwrap();
    }
    let mut rows = Vec::new();
    for parameter in array(&operation["parameters"]) {
        let place = match text(&parameter["in"]) {
            "query" => "`?`",
            _ => "",
        };
        let meaning = format!(
            "{}, {}",
            text(&parameter["description"]),
            type_of(&parameter["schema"])
        );
        rows.push([
            format!("{place}`{}`", text(&parameter["name"])).replace("``", ""),
            meaning,
        ]);
    }
    for (kind, content) in object(&operation["requestBody"]["content"]) {
        rows.push(["body".to_owned(), body(kind, content)]);
    }
    for (status, response) in object(&operation["responses"]) {
        let mut meaning = text(&response["description"]).to_owned();
        for (kind, content) in
            object(&response["content"]).filter(|(kind, _)| *kind != "application/problem+json")
        {
            write!(meaning, ": {}", body(kind, content)).unwrap();
        }
        if status != "default" {
            rows.push([status.to_owned(), meaning]);
        }
    }
    page.push_str("\n| | |\n|---|---|\n");
    for [name, meaning] in rows {
        writeln!(page, "| {name} | {} |", one_line(&meaning)).unwrap();
    }
}

fn body(kind: &str, content: &Value) -> String {
    let mut body = match kind {
        "application/json" => type_of(&content["schema"]),
        kind => format!("`{kind}`"),
    };
    if kind == "text/event-stream" {
        write!(body, " of {}", type_of(&content["schema"])).unwrap();
    }
    if !content["example"].is_null() {
        write!(body, ", for example `{}`", content["example"]).unwrap();
    }
    body
}

fn type_section(page: &mut String, schema: &Value) {
    let about = text(&schema["description"]);
    if !about.is_empty() {
        writeln!(page, "{about}").unwrap();
    }
    let variants: Vec<_> = array(&schema["oneOf"]).collect();
    if !schema["enum"].is_null() {
        writeln!(page, "\nOne of {}.", values(schema)).unwrap();
    } else if !variants.is_empty() {
        page.push_str("\nOne of these:\n\n| `type` | meaning | members |\n|---|---|---|\n");
        for variant in variants {
            let members: Vec<_> = object(&variant["properties"])
                .filter(|(name, _)| *name != "type")
                .map(|(name, member)| {
                    let optional = if is_required(variant, name) {
                        ""
                    } else {
                        ", optional"
                    };
                    let about = text(&member["description"]).trim_end_matches('.');
                    format!("`{name}` ({}{optional}): {about}", type_of(member))
                })
                .collect();
            let name = values(&variant["properties"]["type"]);
            let about = text(&variant["description"]);
            writeln!(
                page,
                "| {name} | {} | {} |",
                one_line(about),
                one_line(&members.join("<br>"))
            )
            .unwrap();
        }
    } else if !schema["properties"].is_null() {
        members(page, schema);
    }
    for part in array(&schema["allOf"]) {
        match part["$ref"].as_str() {
            Some(_) => writeln!(page, "\nAnd what {} has.", type_of(part)).unwrap(),
            None => members(page, part),
        }
    }
}

fn members(page: &mut String, schema: &Value) {
    page.push_str("\n| member | type | meaning |\n|---|---|---|\n");
    for (name, member) in object(&schema["properties"]) {
        let optional = if is_required(schema, name) {
            ""
        } else {
            ", optional"
        };
        // Of a member that may be null, it is with what it is otherwise.
        let mut parts = array(&member["oneOf"]).chain([member]);
        let about = parts.find_map(|part| part["description"].as_str());
        let about = one_line(about.unwrap_or_default());
        writeln!(
            page,
            "| `{name}` | {}{optional} | {about} |",
            type_of(member)
        )
        .unwrap();
    }
}

fn type_of(schema: &Value) -> String {
    if let Some(name) = schema["$ref"].as_str() {
        let name = name.rsplit('/').next().unwrap_or_default();
        return format!("[{name}](#{})", name.to_lowercase());
    }
    let of_parts = ["oneOf", "allOf", "anyOf"].map(|kind| array(&schema[kind]).collect::<Vec<_>>());
    if let Some(parts) = of_parts.iter().find(|parts| !parts.is_empty()) {
        let parts = parts.iter().filter(|part| part["type"] != "null");
        return parts
            .map(|part| type_of(part))
            .collect::<Vec<_>>()
            .join(" or ");
    }
    if !schema["enum"].is_null() {
        return values(schema);
    }
    let plain = |name: &str| match name {
        "array" if schema["items"] == false => {
            let items: Vec<_> = array(&schema["prefixItems"]).map(type_of).collect();
            format!("array of {}", items.join(" and "))
        }
        "array" if schema["items"]["format"] == "int32" && schema["items"]["minimum"] == 0 => {
            "bytes".to_owned()
        }
        "array" => format!("array of {}", type_of(&schema["items"])),
        "object" if !schema["additionalProperties"].is_null() => {
            format!("object of {}", type_of(&schema["additionalProperties"]))
        }
        name => name.to_owned(),
    };
    match &schema["type"] {
        Value::String(name) => plain(name),
        Value::Array(names) => {
            let names = names.iter().map(text).filter(|name| *name != "null");
            names.map(plain).collect::<Vec<_>>().join(" or ")
        }
        _ => "anything".to_owned(),
    }
}

fn values(schema: &Value) -> String {
    let values: Vec<_> = array(&schema["enum"])
        .map(|value| format!("`{}`", text(value)))
        .collect();
    values.join(", ")
}

fn is_required(schema: &Value, name: &str) -> bool {
    array(&schema["required"]).any(|required| required == name)
}

fn one_line(text: &str) -> String {
    text.replace('\n', " ").replace('|', "\\|")
}

fn array(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn object(value: &Value) -> impl Iterator<Item = (&str, &Value)> {
    value
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, value)| (name.as_str(), value))
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[test]
fn the_reference_is_current() {
    let document = serde_json::to_value(super::document()).unwrap();
    let page = page(&document);
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/api.md");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(file, &page).unwrap();
    }
    assert!(
        std::fs::read_to_string(file).unwrap_or_default() == page,
        "docs/api.md is not current; run with UPDATE=1"
    );
}

#[test]
fn every_request_is_described() {
    let document = serde_json::to_value(super::document()).unwrap();
    assert_eq!(document["openapi"], "3.1.0");
    for (path, item) in object(&document["paths"]) {
        for (method, operation) in object(item) {
            assert!(
                !text(&operation["summary"]).is_empty(),
                "{method} {path} has no summary"
            );
            let tag = &operation["tags"][0];
            assert!(
                array(&document["tags"]).any(|known| known["name"] == *tag),
                "{method} {path} has the tag {tag}"
            );
            for part in path
                .split('/')
                .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
            {
                let known =
                    array(&operation["parameters"]).any(|parameter| parameter["name"] == part);
                assert!(known, "{method} {path} does not describe {part}");
            }
            let problem = &operation["responses"]["default"]["content"]["application/problem+json"];
            assert!(problem.is_object(), "{method} {path} has no errors");
        }
    }
    // What is referred to is there.
    let whole = document.to_string();
    for reference in whole.split("\"#/components/schemas/").skip(1) {
        let name = reference.split('"').next().unwrap();
        assert!(
            document["components"]["schemas"][name].is_object(),
            "{name} is referred to, and is not there"
        );
    }
}
