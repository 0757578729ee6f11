//! The terminal of the user: its size, and raw mode for as long as a session has it.
//! Raw mode is undone on drop and on panic. It does not read or write the terminal.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use protocol::WinSize;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// A terminal in raw mode.
#[derive(Debug)]
pub struct RawMode<'fd> {
    terminal: BorrowedFd<'fd>,
    cooked: Termios,
}

impl<'fd> RawMode<'fd> {
    pub fn enter(terminal: BorrowedFd<'fd>) -> io::Result<Self> {
        let cooked = tcgetattr(terminal)?;
        let mode = Self { terminal, cooked };
        restore_on_panic(&mode)?;
        mode.resume()?;
        Ok(mode)
    }

    /// Back to how the terminal was found, for a while.
    pub fn suspend(&self) {
        // Nothing better can be done about a terminal that is gone.
        let _ = tcsetattr(self.terminal, OptionalActions::Now, &self.cooked);
    }

    pub fn resume(&self) -> io::Result<()> {
        let mut raw = self.cooked.clone();
        raw.make_raw();
        Ok(tcsetattr(self.terminal, OptionalActions::Now, &raw)?)
    }
}

impl Drop for RawMode<'_> {
    fn drop(&mut self) {
        self.suspend();
    }
}

/// A panic aborts, so drop would not run.
fn restore_on_panic(mode: &RawMode<'_>) -> io::Result<()> {
    let terminal = mode.terminal.try_clone_to_owned()?;
    let cooked = mode.cooked.clone();
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let _ = tcsetattr(terminal.as_fd(), OptionalActions::Now, &cooked);
        report(panic);
    }));
    Ok(())
}

/// A terminal that does not show what is typed.
#[derive(Debug)]
pub struct Unseen<'fd> {
    terminal: BorrowedFd<'fd>,
    before: Termios,
}

impl<'fd> Unseen<'fd> {
    pub fn enter(terminal: BorrowedFd<'fd>) -> io::Result<Self> {
        let before = tcgetattr(terminal)?;
        let mut unseen = before.clone();
        unseen.local_modes.remove(LocalModes::ECHO);
        // What was typed ahead has been shown.
        tcsetattr(terminal, OptionalActions::Flush, &unseen)?;
        Ok(Self { terminal, before })
    }
}

impl Drop for Unseen<'_> {
    fn drop(&mut self) {
        let _ = tcsetattr(self.terminal, OptionalActions::Flush, &self.before);
    }
}

/// The terminal's size; 80 by 24 where it does not know (0 by 0 is what a serial line says).
pub fn size(terminal: BorrowedFd<'_>) -> WinSize {
    let size = tcgetwinsize(terminal).ok().filter(|size| size.ws_row > 0 && size.ws_col > 0);
    size.map_or(WinSize { rows: 24, columns: 80 }, |size| WinSize { rows: size.ws_row, columns: size.ws_col })
}
