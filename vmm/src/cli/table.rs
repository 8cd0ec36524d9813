//! Text in columns.

/// Rows under headings, in columns as wide as their widest cell. The last column is not padded.
pub fn table(headings: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .chain([headings[column].chars().count()])
            .max()
            .unwrap_or_default()
    };
    let widths: Vec<_> = (0..headings.len()).map(width).collect();
    let mut text = String::new();
    let headings: Vec<_> = headings.iter().map(ToString::to_string).collect();
    for row in std::iter::once(&headings).chain(rows) {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let padding = width - cell.chars().count();
            line.extend([cell.as_str(), &" ".repeat(padding + 2)]);
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::table;

    #[test]
    fn columns_line_up() {
        let rows = [
            vec!["a".into(), "ready".into()],
            vec!["router".into(), String::new()],
        ];
        assert_eq!(
            table(&["NODE", "STATE"], &rows),
            "NODE    STATE\na       ready\nrouter\n"
        );
    }
}
