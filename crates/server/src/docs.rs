//! The pages that describe the interface: the OpenAPI document, and the same for people, made from it once.
//!
//! The page is one piece of HTML with one style sheet. It has no script, and loads nothing from elsewhere; its content
//! security policy forbids both.

use std::fmt::Write;
use std::sync::LazyLock;

use api::problem::CODES;
use axum::http::{HeaderName, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value};

static DOCUMENT: LazyLock<Value> = LazyLock::new(api::openapi::document);
static JSON: LazyLock<String> = LazyLock::new(|| DOCUMENT.to_string());
static PAGE: LazyLock<String> = LazyLock::new(|| html(&DOCUMENT));

const POLICY: &str =
    "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
const METHODS: [&str; 5] = ["get", "post", "put", "patch", "delete"];

fn served(media_type: &'static str, content: &'static str) -> Response {
    let headers: [(HeaderName, &str); 5] = [
        (header::CONTENT_TYPE, media_type),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, content).into_response()
}

/// The OpenAPI document.
pub async fn openapi() -> Response {
    served("application/json", &JSON)
}

/// The page.
pub async fn page() -> Response {
    served("text/html; charset=utf-8", &PAGE)
}

/// Its style sheet.
pub async fn style() -> Response {
    served("text/css; charset=utf-8", include_str!("docs.css"))
}

fn html(document: &Value) -> String {
    let tags = by_tag(document);
    let mut page = String::from(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>Sterna: the interface</title>\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <link rel=\"stylesheet\" href=\"/docs/style.css\"></head><body>\n",
    );
    navigation(&mut page, &tags);
    page += "<main><h1 id=\"top\">Sterna: the interface</h1>\n";
    page += "<p>The same for programs: <a href=\"/openapi.json\">openapi.json</a>, OpenAPI 3.1.</p>\n";
    markdown(&mut page, text(&document["info"]["description"]));
    for (tag, operations) in &tags {
        let _ = writeln!(page, "<h2 id=\"{0}\">{0}</h2>", escaped(tag));
        operations
            .iter()
            .for_each(|operation| operation.write(&mut page, document));
    }
    schemas(&mut page, document);
    problems(&mut page);
    page += "</main></body></html>\n";
    page
}

/// An operation and where it is.
struct Operation<'a> {
    method: &'a str,
    path: &'a str,
    item: &'a Value,
    value: &'a Value,
}

/// The operations by what they are about, in the document's order within each.
fn by_tag(document: &Value) -> Vec<(&str, Vec<Operation<'_>>)> {
    let mut tags: Vec<(&str, Vec<Operation<'_>>)> = Vec::new();
    for (path, item) in entries(&document["paths"]) {
        for method in METHODS {
            let Some(value) = item.get(method) else { continue };
            let operation = Operation {
                method,
                path,
                item,
                value,
            };
            let tag = text(&value["tags"][0]);
            match tags.iter_mut().find(|(known, _)| *known == tag) {
                Some((_, operations)) => operations.push(operation),
                None => tags.push((tag, vec![operation])),
            }
        }
    }
    let place = |tag: &str| model::Kind::ALL.iter().position(|kind| kind.plural() == tag);
    tags.sort_by_key(|(tag, _)| place(tag).unwrap_or(usize::MAX));
    for (_, operations) in &mut tags {
        operations.sort_by_key(|operation| (operation.path.starts_with("/v1/changes"), operation.path.len()));
    }
    tags
}

fn navigation(page: &mut String, tags: &[(&str, Vec<Operation<'_>>)]) {
    *page += "<nav><a href=\"#top\"><strong>Sterna</strong></a>\n";
    for (tag, operations) in tags {
        let _ = write!(
            page,
            "<details><summary><a href=\"#{0}\">{0}</a></summary><ul>",
            escaped(tag)
        );
        for operation in operations {
            let _ = write!(
                page,
                "<li><a href=\"#{}\">{}</a></li>",
                operation.id(),
                escaped(text(&operation.value["summary"]))
            );
        }
        *page += "</ul></details>\n";
    }
    *page += "<p><a href=\"#schemas\">Schemas</a><br><a href=\"#problems\">Problems</a></p></nav>\n";
}

impl Operation<'_> {
    fn id(&self) -> String {
        escaped(text(&self.value["operationId"]))
    }

    fn write(&self, page: &mut String, document: &Value) {
        let (id, path) = (self.id(), escaped(self.path));
        let _ = writeln!(
            page,
            "<section class=\"operation\" id=\"{id}\"><h3><a href=\"#{id}\">{}</a></h3>\
             <p><span class=\"method {1}\">{1}</span> <span class=\"path\">{path}</span></p>",
            escaped(text(&self.value["summary"])),
            self.method,
        );
        self.parameters(page);
        let body = entries(&self.value["requestBody"]["content"]).next();
        if let Some((media_type, body)) = body {
            let _ = writeln!(
                page,
                "<p>Body: {} as <code>{media_type}</code></p>",
                shape(&body["schema"])
            );
        }
        let _ = writeln!(page, "<pre><code>{}</code></pre>", escaped(&self.curl()));
        self.answers(page, document);
        *page += "</section>\n";
    }

    fn parameters(&self, page: &mut String) {
        let listed = [&self.item["parameters"], &self.value["parameters"]];
        let mut all = listed
            .into_iter()
            .filter_map(Value::as_array)
            .flatten()
            .peekable();
        if all.peek().is_none() {
            return;
        }
        *page += "<div class=\"scroll\"><table><tr><th>parameter</th><th>in</th><th>type</th><th>what it says</th></tr>";
        for parameter in all {
            let needed = if parameter["required"] == true {
                ", required"
            } else {
                ""
            };
            let _ = write!(
                page,
                "<tr><td><code>{}</code></td><td>{}{needed}</td><td>{}</td><td>{}</td></tr>",
                escaped(text(&parameter["name"])),
                escaped(text(&parameter["in"])),
                shape(&parameter["schema"]),
                prose(text(&parameter["description"])),
            );
        }
        *page += "</table></div>\n";
    }

    /// The operation as a command.
    fn curl(&self) -> String {
        let named = match text(&self.value["tags"][0]) {
            "hosts" => "h1",
            "images" => "tiny",
            "templates" | "profiles" => "small",
            "networks" => "front",
            "datastores" => "shared",
            "migrations" => "web-m2",
            _ => "web",
        };
        let query = match (self.method, self.path) {
            ("get", path) if path.starts_with("/v1/changes") => "?from=1&timeout_s=30",
            ("get", path) if path.ends_with("/console") => "?log=true",
            ("get", path) if !path.contains('{') => "?sort=name&fields=name,labels&limit=10",
            _ => "",
        };
        let method = if self.method == "get" {
            String::new()
        } else {
            format!(" -X {}", self.method.to_uppercase())
        };
        let mut command =
            String::from("curl --cacert \"$STERNA_CACERT\" -H \"Authorization: Bearer $STERNA_TOKEN\"");
        let _ = write!(
            command,
            "{method} \\\n  \"$STERNA_SERVER{}{query}\"",
            self.path.replace("{name}", named)
        );
        let content = &self.value["requestBody"]["content"];
        if let Some(example) = content["application/json"].get("example") {
            let _ = write!(
                command,
                " \\\n  -H 'Content-Type: application/json' -d '{example}'"
            );
        } else if content.get("application/octet-stream").is_some() {
            command += " \\\n  -H 'Content-Type: application/octet-stream' -T guest.qcow2";
        }
        command
    }

    fn answers(&self, page: &mut String, document: &Value) {
        let mut refusals = Vec::new();
        for (status, response) in entries(&self.value["responses"]) {
            if let Some(reference) = response.get("$ref").and_then(Value::as_str) {
                let response = document
                    .pointer(reference.trim_start_matches('#'))
                    .unwrap_or(&Value::Null);
                let title = text(&response["description"])
                    .split(':')
                    .next()
                    .unwrap_or_default();
                refusals.push(format!(
                    "<a href=\"#problem-{status}\" title=\"{}\">{status}</a>",
                    escaped(title)
                ));
                continue;
            }
            let content = entries(&response["content"]);
            let shapes: Vec<String> = content
                .map(|(media_type, it)| format!("{} as <code>{media_type}</code>", shape(&it["schema"])))
                .collect();
            let what = prose(text(&response["description"]));
            let _ = writeln!(
                page,
                "<p><strong>{status}</strong> {what} {}</p>",
                shapes.join(", or ")
            );
        }
        let _ = writeln!(page, "<p class=\"refusals\">Refusals: {}</p>", refusals.join(" "));
    }
}

fn schemas(page: &mut String, document: &Value) {
    *page += "<h2 id=\"schemas\">Schemas</h2>\n";
    for (name, schema) in entries(&document["components"]["schemas"]) {
        let name = escaped(name);
        let _ = writeln!(
            page,
            "<section class=\"schema\" id=\"schema-{name}\"><h3><a href=\"#schema-{name}\">{name}</a></h3><p>{}</p>",
            prose(text(&schema["description"])),
        );
        let mut rows: Vec<[String; 3]> = entries(&schema["properties"])
            .map(|(field, value)| [escaped(field), shape(value), prose(text(&value["description"]))])
            .collect();
        let meanings = entries(&schema[api::openapi::MEANINGS]);
        rows.extend(meanings.map(|(word, meaning)| [escaped(word), String::new(), prose(text(meaning))]));
        if !rows.is_empty() {
            *page += "<div class=\"scroll\"><table>";
            for [field, kind, what] in rows {
                let _ = write!(
                    page,
                    "<tr><td><code>{field}</code></td><td>{kind}</td><td>{what}</td></tr>"
                );
            }
            *page += "</table></div>";
        }
        *page += "</section>\n";
    }
}

fn problems(page: &mut String) {
    *page += "<h2 id=\"problems\">Problems</h2>\n<div class=\"scroll\"><table>\
              <tr><th>status</th><th>code</th><th>what it means</th><th>what helps</th></tr>\n";
    let mut last = 0;
    for code in CODES {
        let anchor = if code.status == last {
            String::new()
        } else {
            format!(" id=\"problem-{}\"", code.status)
        };
        last = code.status;
        let _ = writeln!(
            page,
            "<tr{anchor}><td>{}</td><td><code>{}</code></td><td>{}</td><td>{}</td></tr>",
            code.status,
            code.code,
            prose(code.means),
            prose(code.remedy),
        );
    }
    *page += "</table></div>\n";
}

/// What a schema is, in a few words, with a link to what it refers to.
fn shape(schema: &Value) -> String {
    if let Some(name) = schema
        .get("$ref")
        .and_then(Value::as_str)
        .and_then(|text| text.rsplit('/').next())
    {
        let name = escaped(name);
        return format!("<a href=\"#schema-{name}\">{name}</a>");
    }
    for union in ["anyOf", "oneOf"] {
        if let Some(all) = schema.get(union).and_then(Value::as_array) {
            return all.iter().map(shape).collect::<Vec<_>>().join(" or ");
        }
    }
    if let Some(items) = schema.get("items") {
        return format!("list of {}", shape(items));
    }
    if let Some(values) = schema
        .get("additionalProperties")
        .filter(|values| values.is_object())
    {
        return format!("map to {}", shape(values));
    }
    match &schema["type"] {
        Value::Array(all) => all.iter().map(text).map(escaped).collect::<Vec<_>>().join(" or "),
        Value::String(one) => escaped(one),
        _ => "anything".to_owned(),
    }
}

/// The part of Markdown that descriptions are written in: headings, paragraphs, fenced blocks.
fn markdown(page: &mut String, source: &str) {
    let (mut paragraph, mut is_code) = (String::new(), false);
    for line in source.lines().chain([""]) {
        if line.starts_with("```") {
            *page += if is_code { "</code></pre>\n" } else { "<pre><code>" };
            is_code = !is_code;
        } else if is_code {
            let _ = writeln!(page, "{}", escaped(line));
        } else if let Some(title) = line.strip_prefix("## ") {
            let anchor = format!("about-{}", title.to_lowercase().replace(' ', "-"));
            let _ = writeln!(
                page,
                "<h3 id=\"{0}\"><a href=\"#{0}\">{1}</a></h3>",
                escaped(&anchor),
                escaped(title)
            );
        } else if line.is_empty() {
            if !paragraph.is_empty() {
                let _ = writeln!(page, "<p>{}</p>", prose(&paragraph));
                paragraph.clear();
            }
        } else {
            paragraph += line;
            paragraph += "\n";
        }
    }
}

/// Text in which every second piece between backticks is code.
fn prose(source: &str) -> String {
    let pieces = source.split('`').enumerate();
    let shown = pieces.map(|(n, piece)| match n % 2 {
        1 => format!("<code>{}</code>", escaped(piece)),
        _ => escaped(piece),
    });
    shown.collect()
}

fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe += "&amp;",
            '<' => safe += "&lt;",
            '>' => safe += "&gt;",
            '"' => safe += "&quot;",
            '\'' => safe += "&#39;",
            c => safe.push(c),
        }
    }
    safe
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn entries(value: &Value) -> impl Iterator<Item = (&str, &Value)> {
    let map = value.as_object().map(Map::iter).into_iter().flatten();
    map.map(|(key, value)| (key.as_str(), value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_and_every_link_is_there() {
        let page = html(&DOCUMENT);
        let anchors: Vec<&str> = page
            .split(" id=\"")
            .skip(1)
            .filter_map(|rest| rest.split('"').next())
            .collect();
        for (_, operations) in by_tag(&DOCUMENT) {
            for operation in operations {
                assert!(anchors.contains(&operation.id().as_str()), "{}", operation.id());
            }
        }
        let links: Vec<&str> = page
            .split("href=\"")
            .skip(1)
            .filter_map(|rest| rest.split('"').next())
            .collect();
        for link in &links {
            let is_there = link
                .strip_prefix('#')
                .is_some_and(|anchor| anchors.contains(&anchor));
            assert!(
                is_there || ["/docs/style.css", "/openapi.json"].contains(link),
                "{link} leads nowhere"
            );
        }
        let mut sorted = anchors.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(sorted.len(), anchors.len(), "an anchor is there twice");
        for outside in ["<script", "=\"http", "url(http", "style=", "<img", "@import"] {
            assert!(
                !page.contains(outside) && !include_str!("docs.css").contains(outside),
                "{outside}"
            );
        }
    }

    #[test]
    fn what_is_written_stays_text() {
        let mut page = String::new();
        markdown(&mut page, "## A <b>\n\na `x<y>`\nb & c\n\n```text\n<i>\n```\n");
        assert_eq!(
            page,
            "<h3 id=\"about-a-&lt;b&gt;\"><a href=\"#about-a-&lt;b&gt;\">A &lt;b&gt;</a></h3>\n\
             <p>a <code>x&lt;y&gt;</code>\nb &amp; c\n</p>\n<pre><code>&lt;i&gt;\n</code></pre>\n"
        );
    }
}
