//! Printing: columns for people, JSON and YAML for programs. Standard output carries results and nothing else.

use std::io::{self, Write};
use std::process::ExitCode;

use api::client::ObjectOf;
use api::{Change, List, Resource};
use console::{Style, Term};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;

use super::{Context, kinds, now};
use crate::cli::Output;
use crate::units;

/// Between columns.
const GAP: &str = "  ";

/// No column is made narrower than this for others.
const NARROWEST: usize = 6;

/// The least width of a column whose cells come one by one.
const ROOM: usize = 9;

/// Rows under titles, each column as wide as its widest cell so far.
#[derive(Debug)]
pub(super) struct Table {
    titles: Vec<String>,
    rows: Vec<Vec<String>>,
    widths: Vec<usize>,
}

impl Table {
    /// An empty one.
    pub(super) fn new(titles: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let titles: Vec<String> = titles.into_iter().map(Into::into).collect();
        let widths = titles
            .iter()
            .map(|title| console::measure_text_width(title))
            .collect();
        Self {
            titles,
            rows: Vec::new(),
            widths,
        }
    }

    /// The same with columns wide enough for most cells, for rows that come one by one.
    fn roomy(mut self) -> Self {
        for width in &mut self.widths {
            *width = (*width).max(ROOM);
        }
        self
    }

    /// Adds a row.
    pub(super) fn push(&mut self, row: Vec<String>) {
        let row = clean(row);
        self.widen(&row);
        self.rows.push(row);
    }

    fn widen(&mut self, row: &[String]) {
        for (width, cell) in self.widths.iter_mut().zip(row) {
            *width = (*width).max(console::measure_text_width(cell));
        }
    }

    /// The columns' widths on so wide a terminal: the widest give way first.
    fn fitting(&self, width: Option<usize>) -> Vec<usize> {
        let mut widths = self.widths.clone();
        let gaps = GAP.len() * widths.len().saturating_sub(1);
        let room = width.unwrap_or(usize::MAX).saturating_sub(gaps);
        while widths.iter().sum::<usize>() > room {
            match widths.iter_mut().max() {
                Some(widest) if *widest > NARROWEST => *widest -= 1,
                _ => break,
            }
        }
        widths
    }

    fn line(&self, cells: &[String], widths: &[usize]) -> String {
        let columns = self.titles.iter().zip(widths);
        let padded = columns.zip(cells).map(|((title, width), cell)| {
            let cell = console::truncate_str(cell, *width, "…");
            let fill = width.saturating_sub(console::measure_text_width(&cell));
            format!("{}{}", style(title, &cell).apply_to(&cell), " ".repeat(fill))
        });
        padded.collect::<Vec<_>>().join(GAP).trim_end().to_owned()
    }

    /// All lines, no longer than `width` if there is one.
    pub(super) fn lines(&self, width: Option<usize>) -> Vec<String> {
        let widths = self.fitting(width);
        let all = std::iter::once(&self.titles).chain(&self.rows);
        all.map(|cells| cut(self.line(cells, &widths), width)).collect()
    }
}

/// Whatever a name or a message carries, it stays one cell of one line.
fn clean(row: Vec<String>) -> Vec<String> {
    let plain = |cell: String| cell.replace(|c: char| c.is_control(), " ");
    row.into_iter().map(plain).collect()
}

/// How a state looks: green is well, red is wrong, yellow wants a look. Only terminals show it, unless NO_COLOR is set.
fn style(title: &str, cell: &str) -> Style {
    let plain = Style::new();
    if !matches!(title, "PHASE" | "STATE") {
        return plain;
    }
    match cell.to_ascii_lowercase().as_str() {
        "running" | "up" | "ready" => plain.green(),
        "failed" | "dead" | "aborted" => plain.red(),
        "unknown" | "silent" => plain.yellow(),
        _ => plain,
    }
}

fn cut(line: String, width: Option<usize>) -> String {
    match width {
        Some(width) if console::measure_text_width(&line) > width => {
            console::truncate_str(&line, width, "…").into_owned()
        }
        _ => line,
    }
}

/// The width of the terminal that standard output is, if it is one.
pub(super) fn terminal_width() -> Option<usize> {
    let term = Term::stdout();
    term.features()
        .is_attended()
        .then(|| term.size_checked())
        .flatten()
        .map(|(_, columns)| usize::from(columns))
}

/// Prints a table.
pub(super) fn table(table: &Table) -> anyhow::Result<()> {
    lines(table.lines(terminal_width()))
}

/// Prints lines.
pub(super) fn lines(lines: impl IntoIterator<Item = String>) -> anyhow::Result<()> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    for line in lines {
        writeln!(out, "{line}")?;
    }
    Ok(out.flush()?)
}

/// Prints a value for programs. Tables and names have no place here: they are printed as JSON.
pub(super) fn value(output: Output, value: &impl Serialize) -> anyhow::Result<()> {
    match output {
        Output::Yaml => {
            let text = yaml_serde::to_string(value)?;
            let mut out = io::stdout().lock();
            out.write_all(text.as_bytes())?;
            Ok(out.flush()?)
        }
        Output::Path(path) => {
            let value = serde_json::to_value(value)?;
            lines(path.query(&value).all().into_iter().map(found))
        }
        _ => lines([serde_json::to_string_pretty(value)?]),
    }
}

/// A value that a path found: a text as it is, all else as JSON.
fn found(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Prints a document as JSON.
pub(super) fn document(document: &Value) -> anyhow::Result<ExitCode> {
    value(Output::Json, document)?;
    Ok(ExitCode::SUCCESS)
}

/// An object's kind and name, as in `vm/web`.
pub(super) fn name<R: Resource>(object: &ObjectOf<R>) -> String {
    format!("{}/{}", R::KIND, object.name)
}

/// Prints an object.
pub(super) fn one<R: Resource>(context: &Context, object: &ObjectOf<R>) -> anyhow::Result<ExitCode> {
    several::<R>(context, &[object])?;
    Ok(ExitCode::SUCCESS)
}

/// Prints what a command led to: one object as it is, several as a list, none not at all.
pub(super) fn several<R: Resource>(context: &Context, objects: &[&ObjectOf<R>]) -> anyhow::Result<()> {
    match (context.output, objects) {
        (_, []) => Ok(()),
        (Output::Table | Output::Name, _) => plain::<R>(context, objects),
        (output, [object]) => value(output, object),
        (output, objects) => {
            let revision = objects.iter().map(|object| object.revision).max().unwrap_or(0);
            value(
                output,
                &List {
                    items: objects.to_vec(),
                    revision,
                    next: None,
                },
            )
        }
    }
}

/// Prints a list.
pub(super) fn list<R: Resource>(
    context: &Context,
    items: &[ObjectOf<R>],
    revision: u64,
) -> anyhow::Result<ExitCode> {
    let items: Vec<&ObjectOf<R>> = items.iter().collect();
    match context.output {
        Output::Table | Output::Name => plain::<R>(context, &items)?,
        output => value(
            output,
            &List {
                items,
                revision,
                next: None,
            },
        )?,
    }
    Ok(ExitCode::SUCCESS)
}

fn plain<R: Resource>(context: &Context, objects: &[&ObjectOf<R>]) -> anyhow::Result<()> {
    if context.output == Output::Name {
        return lines(objects.iter().map(|object| name::<R>(object)));
    }
    // Whoever asks for everything gets lines that are broken by the terminal, not columns that are cut.
    let width = terminal_width().filter(|_| !context.is_wide);
    lines(table_of::<R>(context, objects).lines(width))
}

/// Objects as a table.
pub(super) fn table_of<R: Resource>(context: &Context, objects: &[&ObjectOf<R>]) -> Table {
    let mut all = Table::new(titles::<R>(context.is_wide));
    for object in objects {
        all.push(cells::<R>(object, now(), context.is_wide));
    }
    all
}

/// The columns of every kind that few people need.
const WIDE: [&str; 4] = ["LABELS", "OWNER", "REVISION", "ID"];

fn titles<R: Resource>(is_wide: bool) -> impl Iterator<Item = &'static str> {
    let named = (R::KIND != model::Kind::Event).then_some("NAME");
    let wide = WIDE.into_iter().filter(move |_| is_wide);
    named.into_iter().chain(R::COLUMNS.iter().copied()).chain(wide)
}

fn wide<R: Resource>(object: &ObjectOf<R>) -> [String; 4] {
    let labels: Vec<String> = object
        .labels
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    [
        labels.join(","),
        object.owner.clone(),
        object.revision.to_string(),
        object.id.to_string(),
    ]
}

/// An object's row: times as people read them. Events are told apart by what they say, not by their names.
fn cells<R: Resource>(object: &ObjectOf<R>, now: Timestamp, is_wide: bool) -> Vec<String> {
    let named = (R::KIND != model::Kind::Event).then(|| object.name.clone());
    let rest = R::COLUMNS.iter().zip(R::row(object)).map(|(title, cell)| {
        match (*title, cell.parse::<Timestamp>()) {
            ("AGE", Ok(at)) => units::age(now.duration_since(at).as_secs()),
            ("AT", Ok(at)) => at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            _ => cell,
        }
    });
    let wide = wide::<R>(object).into_iter().filter(|_| is_wide);
    named.into_iter().chain(rest).chain(wide).collect()
}

/// Prints changes as they come.
#[derive(Debug)]
pub(super) struct Printer {
    table: Table,
    has_titles: bool,
    with_change: bool,
}

impl Printer {
    /// A row per change begins with what happened.
    pub(super) fn changes<R: Resource>(context: &Context) -> Self {
        let table = Table::new(std::iter::once("CHANGE").chain(titles::<R>(context.is_wide))).roomy();
        Self {
            table,
            has_titles: false,
            with_change: true,
        }
    }

    /// A row per object that was added; other changes are left out of the table.
    pub(super) fn added<R: Resource>(context: &Context) -> Self {
        Self {
            table: Table::new(titles::<R>(context.is_wide)).roomy(),
            has_titles: false,
            with_change: false,
        }
    }

    /// Prints rows that were there before, so that later ones stand under them.
    pub(super) fn rows<R: Resource>(
        &mut self,
        context: &Context,
        objects: &[ObjectOf<R>],
    ) -> anyhow::Result<()> {
        if context.output != Output::Table {
            return Ok(());
        }
        for object in objects {
            self.table.push(cells::<R>(object, now(), context.is_wide));
        }
        let width = terminal_width();
        lines(self.table.lines(width))?;
        self.table.rows.clear();
        self.has_titles = true;
        Ok(())
    }

    /// Prints a change: a line of JSON, a document of YAML, a name, or a row.
    pub(super) fn change<R: Resource>(
        &mut self,
        context: &Context,
        change: &Change<ObjectOf<R>>,
    ) -> anyhow::Result<()> {
        match context.output {
            Output::Json => lines([serde_json::to_string(change)?]),
            Output::Path(_) => value(context.output, change),
            Output::Yaml => lines([
                "---".to_owned(),
                yaml_serde::to_string(change)?.trim_end().to_owned(),
            ]),
            Output::Name => lines([name::<R>(&change.object)]),
            Output::Table => self.row::<R>(context, change),
        }
    }

    fn row<R: Resource>(&mut self, context: &Context, change: &Change<ObjectOf<R>>) -> anyhow::Result<()> {
        let mut row = cells::<R>(&change.object, now(), context.is_wide);
        if self.with_change {
            row.insert(0, kinds::word(change.change_type).to_owned());
        }
        let row = clean(row);
        self.table.widen(&row);
        let width = terminal_width();
        let widths = self.table.fitting(width);
        let line = |cells: &[String]| cut(self.table.line(cells, &widths), width);
        if !self.has_titles {
            lines([line(&self.table.titles)])?;
        }
        lines([line(&row)])?;
        self.has_titles = true;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell_and_lines_fit() {
        let mut table = Table::new(["NAME", "PHASE", "REASON"]);
        table.push(vec!["a-long-name".to_owned(), "Off".to_owned(), String::new()]);
        table.push(vec![
            "b".to_owned(),
            "Pending".to_owned(),
            "no-host-\u{1b}fits".to_owned(),
        ]);
        assert_eq!(
            table.lines(None),
            [
                "NAME         PHASE    REASON",
                "a-long-name  Off",
                "b            Pending  no-host- fits",
            ]
        );
        assert_eq!(
            table.lines(Some(26)),
            [
                "NAME      PHASE    REASON",
                "a-long-…  Off",
                "b         Pending  no-hos…",
            ]
        );
        // Where there is no room at all, the line is cut.
        assert_eq!(table.lines(Some(16))[0], "NAME    PHASE  …");
    }
}
