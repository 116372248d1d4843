//! A turn of a conversation that may hold pictures. Each dialect wraps them in its own way; inside there is a file in base64.

use fathom_engine::{PICTURE_MARK, with_pictures};
use fathom_picture::{from_base64, from_data_url};

use crate::Refusal;
use crate::ask::Sent;

/// Pictures of a conversation at most.
const PICTURES: usize = 64;

/// What a turn says, part by part.
#[derive(Default)]
pub(super) struct Turn {
    text: String,
    /// Where in the text each picture stands.
    marks: Vec<usize>,
    pictures: Vec<Sent>,
}

impl Turn {
    /// Adds text.
    pub(super) fn say(&mut self, text: &str) {
        self.text.push_str(text);
    }

    /// Adds a picture that an address holds.
    pub(super) fn show_url(&mut self, place: String, url: &str) -> Result<(), Refusal> {
        match from_data_url(url) {
            Ok(file) => self.show(place, file),
            Err(error) => Err(Refusal::field(place, error.to_string())),
        }
    }

    /// Adds a picture in base64.
    pub(super) fn show_base64(&mut self, place: String, text: &str) -> Result<(), Refusal> {
        match from_base64(text) {
            Some(file) => self.show(place, file),
            None => Err(Refusal::field(place, "is no base64")),
        }
    }

    fn show(&mut self, place: String, file: Vec<u8>) -> Result<(), Refusal> {
        self.marks.push(self.text.len());
        self.pictures.push(Sent { place, file });
        Ok(())
    }

    /// The turn's text with a mark for every picture; these go to `pictures`.
    ///
    /// Pictures stand where they were sent. But where all of them come behind the words, as most clients send them, they go before them:
    /// that is what models have learned.
    pub(super) fn close(self, pictures: &mut Vec<Sent>) -> Result<String, Refusal> {
        let Turn { text, marks, pictures: own } = self;
        if let Some(beyond) = own.get(PICTURES.saturating_sub(pictures.len())) {
            return Err(Refusal::field(beyond.place.clone(), format!("is one more than {PICTURES} pictures")));
        }
        pictures.extend(own);
        if marks.iter().all(|&at| at == text.len()) {
            return Ok(with_pictures(marks.len(), &text));
        }
        let (mut placed, mut from) = (String::new(), 0);
        for at in marks {
            placed.push_str(&text[from..at]);
            if !placed.is_empty() && !placed.ends_with('\n') {
                placed.push('\n');
            }
            placed.push_str(PICTURE_MARK);
            placed.push('\n');
            from = at;
        }
        placed.push_str(&text[from..]);
        Ok(placed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn closed(parts: &[&str]) -> String {
        let mut turn = Turn::default();
        for part in parts {
            match part.strip_prefix("data:") {
                Some(_) => turn.show_url("here".into(), part).unwrap(),
                None => turn.say(part),
            }
        }
        turn.close(&mut Vec::new()).unwrap()
    }

    #[test]
    fn pictures_stand_where_they_were_sent() {
        let x = "data:image/png;base64,Zm9v";
        assert_eq!(closed(&["What?"]), "What?");
        assert_eq!(closed(&[x, "What?"]), format!("{PICTURE_MARK}\nWhat?"));
        assert_eq!(closed(&["What?", x]), format!("{PICTURE_MARK}\nWhat?"));
        assert_eq!(closed(&["Which?", x, x]), format!("{PICTURE_MARK}\n{PICTURE_MARK}\nWhich?"));
        let mixed = closed(&["A", x, "B", x]);
        assert_eq!(mixed, format!("A\n{PICTURE_MARK}\nB\n{PICTURE_MARK}\n"));
    }

    #[test]
    fn what_is_no_picture_is_refused_by_its_place() {
        let mut turn = Turn::default();
        for url in ["https://example.org/cat.png", "file:///etc/passwd", "data:image/png,x"] {
            let refusal = turn.show_url("messages[0]".into(), url).unwrap_err();
            assert_eq!(refusal.param(), Some("messages[0]"), "{refusal}");
        }
        assert!(turn.show_base64("images[0]".into(), "?").is_err());
        (0..=PICTURES).for_each(|i| turn.show_base64(format!("images[{i}]"), "Zm9v").unwrap());
        let refusal = turn.close(&mut Vec::new()).unwrap_err();
        assert_eq!(refusal.param(), Some("images[64]"), "{refusal}");
    }
}
