//! How far something long has come: one line that is drawn again and again on a terminal, else one at its start and one
//! at its end. It measures bytes and time and knows nothing of what they are for.

use std::io::IsTerminal;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::output;
use crate::text::plain;

const REDRAW: Duration = Duration::from_millis(100);
/// Of what is being done; the line has to fit into a narrow terminal.
const WHAT_MAX: usize = 44;

/// Shared by all who work on it.
#[derive(Debug)]
pub struct Progress {
    what: String,
    form: Form,
    state: Mutex<State>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Live,
    Lines,
    Silent,
}

#[derive(Debug)]
struct State {
    done: u64,
    total: u64,
    /// What was there before, so that the rate is of what was moved now.
    found: u64,
    start: Instant,
    drawn: Option<Instant>,
    said: bool,
}

impl Progress {
    /// On the error stream; `what` is like `pulling debian:trixie`.
    pub fn new(what: &str) -> Self {
        let form = if std::io::stderr().is_terminal() { Form::Live } else { Form::Lines };
        Self::of(what, form)
    }

    /// For those who do not want to know.
    #[cfg(test)]
    pub fn silent() -> Self {
        Self::of("", Form::Silent)
    }

    fn of(what: &str, form: Form) -> Self {
        let mut what = plain(what);
        what.truncate(what.floor_char_boundary(WHAT_MAX));
        let start = Instant::now();
        let state = State { done: 0, total: 0, found: 0, start, drawn: None, said: false };
        Self { what, form, state: Mutex::new(state) }
    }

    /// So many bytes more are to come.
    pub fn expect(&self, bytes: u64) {
        self.change(|state| state.total = state.total.saturating_add(bytes));
    }

    /// So many of them are there already.
    pub fn found(&self, bytes: u64) {
        self.change(|state| {
            state.done = state.done.saturating_add(bytes);
            state.found = state.found.saturating_add(bytes);
        });
    }

    pub fn advance(&self, bytes: u64) {
        self.change(|state| state.done = state.done.saturating_add(bytes));
    }

    /// So many that were done are to be done again.
    pub fn retreat(&self, bytes: u64) {
        self.change(|state| state.done = state.done.saturating_sub(bytes));
    }

    /// Says how it ended. Nothing is said of what did not begin; a line that was drawn is taken back.
    pub fn finish(&self, succeeded: bool) {
        let mut state = self.lock();
        if state.drawn.is_some() {
            output::note("\r\x1b[K");
        }
        if succeeded && state.said {
            let nothing = if state.done == state.found { ", nothing to fetch" } else { "" };
            output::note(&format!("{}{nothing}\n", self.line(&state)));
        }
        state.drawn = None;
        state.said = false;
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.lock();
        change(&mut state);
        let due = state.drawn.is_none_or(|drawn| drawn.elapsed() >= REDRAW);
        if self.form == Form::Live && due {
            state.drawn = Some(Instant::now());
            output::note(&format!("\r{}\x1b[K", self.line(&state)));
        } else if self.form == Form::Lines && !state.said {
            output::note(&format!("{}\n", self.what));
        }
        state.said = self.form != Form::Silent;
    }

    fn line(&self, state: &State) -> String {
        let seconds = state.start.elapsed().as_secs_f64().max(0.001);
        let moved = state.done.saturating_sub(state.found);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a rate for people: it is positive, and its last digits do not matter"
        )]
        let rate = (moved as f64 / seconds) as u64;
        let of = if state.total > state.done { format!(" of {}", mib(state.total)) } else { String::new() };
        let how = if moved == 0 { String::new() } else { format!(", {} MiB/s", mib(rate)) };
        format!("{}: {}{of} MiB{how}", self.what, mib(state.done))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("no one panics while holding it")
    }
}

/// A number of bytes in MiB with one digit.
fn mib(bytes: u64) -> String {
    let tenths = bytes.saturating_mul(10) >> 20;
    format!("{}.{}", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_far_it_is() {
        let progress = Progress::of("pulling \u{1b}[2Jx", Form::Silent);
        progress.expect(10 << 20);
        progress.found(3 << 20);
        assert!(progress.line(&progress.lock()).ends_with(": 3.0 of 10.0 MiB"));
        progress.advance(3 << 20);
        progress.retreat(1 << 20);
        let line = progress.line(&progress.lock());
        assert!(line.starts_with("pulling \\u{1b}[2Jx: 5.0 of 10.0 MiB, "), "{line}");
        progress.advance(5 << 20);
        assert!(progress.line(&progress.lock()).contains(": 10.0 MiB, "));
        assert!(Progress::of(&"é".repeat(100), Form::Silent).what.len() <= WHAT_MAX);
    }
}
