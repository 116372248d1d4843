//! Markdown as it streams in: text appears at once as it is, and each line is drawn anew, formatted, when it is complete.
//!
//! A table is drawn anew when its last line has come; code stays as it is. The stream only makes the bytes for the
//! terminal. Control characters of the model's are dropped, for a terminal would obey them.

use termimad::{Alignment, MadSkin};
use unicode_width::UnicodeWidthChar as _;

/// Columns and rows of a terminal.
pub(crate) type Size = (usize, usize);

/// One answer on its way to the terminal.
pub(crate) struct Markdown {
    skin: MadSkin,
    /// Lines of a table that stand on the screen as they came, each with its newline.
    table: String,
    /// The line that is being written, as it stands on the screen.
    line: String,
    in_code: bool,
}

impl Markdown {
    pub(crate) fn new() -> Self {
        let mut skin = MadSkin::default();
        for header in &mut skin.headers {
            header.align = Alignment::Left;
        }
        Markdown { skin, table: String::new(), line: String::new(), in_code: false }
    }

    /// Takes the next piece of text and gives what to write to a terminal of this size.
    pub(crate) fn push(&mut self, text: &str, size: Size) -> String {
        let mut out = String::new();
        for c in text.chars() {
            if c == '\n' {
                self.end_line(size, &mut out);
                continue;
            }
            if self.line.is_empty() && c != '|' {
                self.end_table(size, &mut out);
            }
            let mut put = |c| {
                self.line.push(c);
                out.push(c);
            };
            match c {
                '\t' => (0..4).for_each(|_| put(' ')),
                _ if c.is_control() => {}
                _ => put(c),
            }
        }
        out
    }

    /// The answer has ended: what is left to write.
    pub(crate) fn finish(&mut self, size: Size) -> String {
        let mut out = String::new();
        if !self.line.is_empty() {
            self.end_line(size, &mut out);
        }
        self.end_table(size, &mut out);
        out
    }

    fn end_line(&mut self, size: Size, out: &mut String) {
        let line = std::mem::take(&mut self.line);
        let start = line.trim_start();
        if start.starts_with("```") {
            self.in_code = !self.in_code;
            let language = start.trim_matches('`').trim();
            let label = if self.in_code {
                format!("\x1b[2m── {language}\x1b[0m\n")
            } else {
                "\x1b[2m──\x1b[0m\n".into()
            };
            redraw(&line, &label, size, out);
        } else if self.in_code || start.is_empty() {
            self.end_table(size, out);
            out.push('\n');
        } else if start.starts_with('|') {
            out.push('\n');
            self.table.push_str(&line);
            self.table.push('\n');
        } else {
            redraw(&line, &self.skin.text(&line, Some(size.0)).to_string(), size, out);
        }
    }

    fn end_table(&mut self, size: Size, out: &mut String) {
        if !self.table.is_empty() {
            let table = std::mem::take(&mut self.table);
            redraw(&table, &self.skin.text(&table, Some(size.0)).to_string(), size, out);
        }
    }
}

/// Replaces what stands on the screen, which ends at the cursor, unless its beginning has scrolled away.
fn redraw(raw: &str, formatted: &str, size: Size, out: &mut String) {
    let up = raw.split('\n').map(|line| rows(line, size.0)).sum::<usize>() - 1;
    if up >= size.1 {
        out.push_str(if raw.ends_with('\n') { "" } else { "\n" });
        return;
    }
    out.push('\r');
    if up > 0 {
        out.push_str(&format!("\x1b[{up}A"));
    }
    out.push_str("\x1b[J");
    out.push_str(formatted);
    if !formatted.ends_with('\n') {
        out.push('\n');
    }
}

/// Rows of the screen that a line takes.
fn rows(line: &str, columns: usize) -> usize {
    let (mut rows, mut column) = (1, 0);
    for width in line.chars().map(|c| c.width().unwrap_or(0)) {
        if column + width > columns {
            (rows, column) = (rows + 1, 0);
        }
        column += width;
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: Size = (20, 10);

    /// A terminal of unlimited height that knows what the stream may send; a full row wraps at the next character.
    #[derive(Default)]
    struct Screen {
        rows: Vec<String>,
        row: usize,
        column: usize,
    }

    impl Screen {
        fn write(&mut self, text: &str) {
            let mut chars = text.chars();
            while let Some(c) = chars.next() {
                match c {
                    '\r' => self.column = 0,
                    '\n' => (self.row, self.column) = (self.row + 1, 0),
                    '\x1b' => {
                        assert_eq!(chars.next(), Some('['));
                        let body: String = chars.by_ref().take_while(|c| !c.is_ascii_alphabetic()).collect();
                        // The letter was consumed: `J` comes bare, `A` with a number, the rest is colour.
                        match body.as_str() {
                            "" => self.rows.truncate(self.row),
                            n if n.len() < 3 && text.contains(&format!("\x1b[{n}A")) => {
                                self.row -= n.parse::<usize>().unwrap()
                            }
                            _ => {}
                        }
                    }
                    c => {
                        if self.column == SIZE.0 {
                            (self.row, self.column) = (self.row + 1, 0);
                        }
                        if self.rows.len() <= self.row {
                            self.rows.resize(self.row + 1, String::new());
                        }
                        self.rows[self.row].push(c);
                        self.column += 1;
                    }
                }
            }
        }

        fn text(&self) -> Vec<&str> {
            self.rows.iter().map(|r| r.trim_end()).collect()
        }
    }

    fn shown(text: &str, piece: usize) -> Screen {
        let (mut screen, mut stream) = (Screen::default(), Markdown::new());
        let chars: Vec<char> = text.chars().collect();
        for piece in chars.chunks(piece) {
            screen.write(&stream.push(&piece.iter().collect::<String>(), SIZE));
        }
        screen.write(&stream.finish(SIZE));
        screen
    }

    #[test]
    fn a_long_line_is_wrapped_at_words_however_it_arrives() {
        let text = "Here **bold** words run over several rows\nand `code` too";
        for piece in [1, 2, 7, 100] {
            let screen = shown(text, piece);
            assert_eq!(screen.text(), ["Here bold words run", "over several rows", "and code too"], "{piece}");
        }
    }

    #[test]
    fn code_is_left_alone() {
        let screen = shown("x\n```rust\nlet a = **b;\n\n```\ny\n", 3);
        assert_eq!(screen.text(), ["x", "── rust", "let a = **b;", "", "──", "y"]);
    }

    #[test]
    fn a_table_is_drawn_when_it_is_complete() {
        let screen = shown("|a|b|\n|-|-|\n|1|2|\nafter\n", 2);
        let text = screen.text().join("\n");
        assert!(text.contains('│') && !text.contains('|'), "{text}");
        assert!(text.ends_with("after"), "{text}");
    }

    #[test]
    fn the_terminal_is_not_obeyed_to_the_model() {
        let mut stream = Markdown::new();
        assert_eq!(stream.push("a\x1b]0;x\x07\u{9b}2Jb", SIZE), "a]0;x2Jb");
    }

    #[test]
    fn rows_count_wide_characters() {
        assert_eq!(rows("", 4), 1);
        assert_eq!(rows("abcd", 4), 1);
        assert_eq!(rows("abcde", 4), 2);
        assert_eq!(rows("a日本", 4), 2);
    }

    #[test]
    fn what_has_scrolled_away_stays() {
        let mut stream = Markdown::new();
        let long = "word ".repeat(60);
        stream.push(&long, SIZE);
        assert_eq!(stream.push("\n", SIZE), "\n");
    }
}
