//! Stop signals: from CRI's enumeration to the kernel's numbers and back.

use crate::proto::cri::Signal;

/// What stops a container when nobody says otherwise.
pub(crate) const DEFAULT_STOP: i32 = libc::SIGTERM;

/// First real-time signal that programs see, and the last; glibc keeps 32 and 33 to itself.
const REALTIME_MIN: i32 = 34;
const REALTIME_MAX: i32 = 64;

/// The names that are not aliases of another.
const NAMED: [(Signal, i32); 31] = [
    (Signal::Sigabrt, libc::SIGABRT),
    (Signal::Sigalrm, libc::SIGALRM),
    (Signal::Sigbus, libc::SIGBUS),
    (Signal::Sigchld, libc::SIGCHLD),
    (Signal::Sigcont, libc::SIGCONT),
    (Signal::Sigfpe, libc::SIGFPE),
    (Signal::Sighup, libc::SIGHUP),
    (Signal::Sigill, libc::SIGILL),
    (Signal::Sigint, libc::SIGINT),
    (Signal::Sigio, libc::SIGIO),
    (Signal::Sigkill, libc::SIGKILL),
    (Signal::Sigpipe, libc::SIGPIPE),
    (Signal::Sigprof, libc::SIGPROF),
    (Signal::Sigpwr, libc::SIGPWR),
    (Signal::Sigquit, libc::SIGQUIT),
    (Signal::Sigsegv, libc::SIGSEGV),
    (Signal::Sigstkflt, libc::SIGSTKFLT),
    (Signal::Sigstop, libc::SIGSTOP),
    (Signal::Sigsys, libc::SIGSYS),
    (Signal::Sigterm, libc::SIGTERM),
    (Signal::Sigtrap, libc::SIGTRAP),
    (Signal::Sigtstp, libc::SIGTSTP),
    (Signal::Sigttin, libc::SIGTTIN),
    (Signal::Sigttou, libc::SIGTTOU),
    (Signal::Sigurg, libc::SIGURG),
    (Signal::Sigusr1, libc::SIGUSR1),
    (Signal::Sigusr2, libc::SIGUSR2),
    (Signal::Sigvtalrm, libc::SIGVTALRM),
    (Signal::Sigwinch, libc::SIGWINCH),
    (Signal::Sigxcpu, libc::SIGXCPU),
    (Signal::Sigxfsz, libc::SIGXFSZ),
];

/// The kernel's number; `None`: the request leaves it to image and runtime.
pub(crate) fn number(signal: Signal) -> Option<i32> {
    match signal {
        Signal::RuntimeDefault => None,
        Signal::Sigcld => Some(libc::SIGCHLD),
        Signal::Sigiot => Some(libc::SIGABRT),
        Signal::Sigpoll => Some(libc::SIGIO),
        realtime if realtime as i32 >= Signal::Sigrtmin as i32 => {
            Some(REALTIME_MIN + realtime as i32 - Signal::Sigrtmin as i32)
        }
        named => NAMED.iter().find(|(s, _)| *s == named).map(|(_, n)| *n),
    }
}

/// CRI's name of a number; RUNTIME_DEFAULT where it has none.
pub(crate) fn name(number: i32) -> Signal {
    if (REALTIME_MIN..=REALTIME_MAX).contains(&number) {
        let value = Signal::Sigrtmin as i32 + number - REALTIME_MIN;
        return Signal::try_from(value).unwrap_or(Signal::RuntimeDefault);
    }
    NAMED.iter().find(|(_, n)| *n == number).map_or(Signal::RuntimeDefault, |(s, _)| *s)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_signal_of_cri_has_its_number() {
        assert_eq!(number(Signal::RuntimeDefault), None);
        for value in 1..=Signal::Sigrtmax as i32 {
            let signal = Signal::try_from(value).expect("a signal");
            let number = number(signal).expect("a number");
            assert!((1..=64).contains(&number), "{signal:?}");
        }
        assert_eq!(number(Signal::Sigrtmax), Some(64));
        assert_eq!(number(Signal::Sigrtmin), Some(34));
        assert_eq!(number(Signal::Sigrtmaxminus14), Some(50));
        assert_eq!(number(Signal::Sigusr1), Some(libc::SIGUSR1));
    }

    #[test]
    fn a_number_finds_its_name_again() {
        for n in [libc::SIGTERM, libc::SIGQUIT, libc::SIGWINCH, 34, 50, 64] {
            assert_eq!(number(name(n)), Some(n));
        }
        assert_eq!(name(33), Signal::RuntimeDefault);
    }
}
