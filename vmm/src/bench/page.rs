//! Results as a page that needs nothing but itself.

use std::fmt::Write;

use super::plot;
use super::results::Results;
use super::table::{LEGEND, RATIO_LEGEND, Rows, figures, ratios, remarks};
use crate::failure::Failure;

const STYLE: &str = "\
:root { color-scheme: light dark; --line: light-dark(#ddd, #444); --soft: light-dark(#666, #aaa) }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem }
h1, h2 { line-height: 1.2 }
h2 { margin-top: 3rem }
.soft { color: var(--soft) }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums }
th, td { padding: 0.25rem 0.75rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap }
th:nth-child(-n+2), td:nth-child(-n+2) { text-align: left }
svg { max-width: 100%; height: auto; border-radius: 4px; margin: 0.5rem 0 }
";

/// A page of everything in `all`.
pub fn html(all: &[Results]) -> Result<String, Failure> {
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width\">\n\
         <title>Hopyard: engines side by side</title>\n<style>\n{STYLE}</style>\n<h1>Engines side by side</h1>\n"
    );
    if all.len() > 1 {
        page.push_str("<ul>\n");
        for results in all {
            let _ = writeln!(
                page,
                "<li><a href=\"#{}\">{}</a></li>",
                results.bench,
                text(&results.title)
            );
        }
        page.push_str("</ul>\n");
    }
    for results in all {
        let _ = writeln!(
            page,
            "<h2 id=\"{}\">{}</h2>\n<p>{}</p>\n<p class=\"soft\">Taken on: {}.</p>",
            text(&results.bench),
            text(&results.title),
            text(&results.about),
            text(&results.machine.describe())
        );
        for (_, picture) in plot::all(results)? {
            page.push_str(&picture);
        }
        append(&mut page, &figures(results), LEGEND);
        if let Some(ratios) = ratios(results) {
            append(&mut page, &ratios, RATIO_LEGEND);
        }
        for remark in remarks(results) {
            let _ = writeln!(page, "<p class=\"soft\">{}</p>", text(&remark));
        }
    }
    page.push_str("</html>\n");
    Ok(page)
}

fn append(page: &mut String, rows: &Rows, legend: &str) {
    let _ = writeln!(
        page,
        "<p class=\"soft\">{}</p>\n<div class=\"wide\"><table>",
        text(legend)
    );
    for (n, row) in rows.iter().enumerate() {
        let kind = if n == 0 { "th" } else { "td" };
        page.push_str("<tr>");
        for cell in row {
            let _ = write!(page, "<{kind}>{}</{kind}>", text(cell));
        }
        page.push_str("</tr>\n");
    }
    page.push_str("</table></div>\n");
}

/// As text of a page.
fn text(plain: &str) -> String {
    plain
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}
