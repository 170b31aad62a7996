use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::style::{Color, Modifier};

use super::*;
use crate::host::{Connect, Destination};
use crate::job::State;
use crate::remote::Usage;

fn job(id: &str, name: Option<&str>, host: &str, command: &[&str]) -> ListedJob {
    let destination = Destination {
        host: host.parse().unwrap(),
        connect: Connect::default(),
    };
    let name = name.map(|name| name.parse().unwrap());
    let words = command.iter().map(|word| (*word).to_owned()).collect();
    let mut record = Record::new(id.parse().unwrap(), name, destination, words);
    record.state = State::Running;
    record.pid = Some(4242);
    ListedJob::from(record)
}

fn usage(cpu_percent: f64, cpu_seconds: f64, rss_bytes: u64, processes: u32) -> Usage {
    Usage {
        cpu_percent: Some(cpu_percent),
        cpu_seconds,
        rss_bytes: Some(rss_bytes),
        processes,
    }
}

/// A screen with three jobs on two hosts, one of which does not answer.
fn three() -> Screen {
    let mut screen = Screen::new(SortKey::Cpu, true);
    let mut train = job(
        "2pysv60g",
        Some("train"),
        "web1",
        &["./train", "--epochs", "90"],
    );
    train.usage = Some(usage(198.25, 13867.0, 2 << 30, 5));
    let mut idle = job("4h3q78r4", None, "web1", &["sh", "-c", "\u{1b}[31m wait\n"]);
    idle.usage = Some(usage(0.0, 0.4, 3 << 20, 1));
    let mut lost = job("9abcdefg", Some("api"), "db", &["./serve"]);
    lost.state = State::Unknown;
    screen.jobs = vec![lost, idle, train];
    screen
}

fn drawn(screen: &mut Screen, width: u16, height: u16) -> Terminal<TestBackend> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| screen.draw(frame)).unwrap();
    terminal
}

fn text(screen: &mut Screen, width: u16, height: u16) -> Vec<String> {
    let terminal = drawn(screen, width, height);
    let buffer = terminal.backend().buffer();
    let cells: Vec<&str> = buffer
        .content()
        .iter()
        .map(ratatui::buffer::Cell::symbol)
        .collect();
    let rows = cells.chunks(usize::from(width.max(1)));
    rows.map(|row| row.concat().trim_end().to_owned()).collect()
}

fn press(screen: &mut Screen, keys: &str) -> Option<Action> {
    let mut action = None;
    for letter in keys.chars() {
        let code = match letter {
            '\n' => KeyCode::Enter,
            '\u{1b}' => KeyCode::Esc,
            '\u{8}' => KeyCode::Backspace,
            '>' => KeyCode::Down,
            '<' => KeyCode::Up,
            letter => KeyCode::Char(letter),
        };
        action = screen.key(KeyEvent::from(code));
    }
    action
}

#[test]
fn a_screen_of_the_usual_size() {
    let mut screen = three();
    screen.host_errors = vec!["db: no answer for 4 s".to_owned()];
    screen.message = "4h3q78r4 on web1: TERM sent".to_owned();
    screen.take_output(
        &"2pysv60g".parse().unwrap(),
        b"half a line\nepoch 1: 10%\repoch 1: 20%\n\x1b[1mbold\x1b[m\tand tab \\t\n",
        b"late\n",
    );
    assert_eq!(
        text(&mut screen, 80, 24),
        [
            "rsig top: 3 jobs on 2 hosts, by cpu",
            " ID       NAME  HOST STATE                 SINCE    CPU MEMORY COMMAND",
            " 2pysv60g train web1 running                   - 198.2%   2.0G ./train --epochs…",
            " 4h3q78r4 -     web1 running                   -   0.0%   3.0M sh -c '\\x1b[31m …",
            " 9abcdefg api   db   unknown (was running)     -      -      - ./serve",
            "",
            "db: no answer for 4 s",
            "-- output of 2pysv60g (train) on web1 ------------------------------------------",
            "half a line",
            "epoch 1: 20%",
            "\\x1b[1mbold\\x1b[m    and tab \\t",
            "-- standard error --------------------------------------------------------------",
            "late",
            "",
            "",
            "",
            "",
            "",
            "",
            "",
            "",
            "4h3q78r4 on web1: TERM sent",
            "q quit  Space mark  / filter  o order  r reverse  t TERM  k KILL  s STOP  c CONT",
            "x any signal  e end  w wait",
        ]
    );
}

#[test]
fn a_small_screen_has_what_matters_most() {
    let mut screen = three();
    screen.take_output(&"2pysv60g".parse().unwrap(), b"one\ntwo\nthree\n", b"");
    assert_eq!(
        text(&mut screen, 40, 13),
        [
            "rsig top: 3 jobs on 2 hosts, by cpu",
            " ID       STATE                 COMMAND",
            " 2pysv60g running               ./train…",
            " 4h3q78r4 running               sh -c '…",
            " 9abcdefg unknown (was running) ./serve",
            "",
            "-- output of 2pysv60g (train) on web1 --",
            "one",
            "two",
            "three",
            "",
            "q quit  Space mark  / filter  o order",
            "r reverse  t TERM  k KILL  s STOP",
        ]
    );
    let list = [
        " ID       STATE                 COMMAND",
        " 2pysv60g running               ./train…",
    ];
    assert_eq!(text(&mut screen, 40, 2), list);
    // The selected job stays in view.
    let _ = press(&mut screen, ">>");
    assert!(text(&mut screen, 40, 2)[1].starts_with(" 9abcdefg"));
    let _ = press(&mut screen, "<");
    assert!(text(&mut screen, 40, 2)[1].starts_with(" 4h3q78r4"));
    let mut empty = Screen::default();
    assert_eq!(text(&mut empty, 40, 2)[1], " no jobs");
}

#[test]
fn any_size_will_do() {
    for is_empty in [true, false] {
        let mut screen = if is_empty { Screen::default() } else { three() };
        screen.host_errors = vec!["web1: no answer for 4 s".to_owned(); 5];
        screen.take_output(
            &"2pysv60g".parse().unwrap(),
            "\u{4e16}".repeat(300).as_bytes(),
            b"x\n",
        );
        for (width, height) in (0..130)
            .step_by(3)
            .flat_map(|width| (0..30).map(move |height| (width, height)))
        {
            drop(drawn(&mut screen, width, height));
        }
    }
}

#[test]
fn colour_is_for_those_who_want_it() {
    for is_coloured in [true, false] {
        let mut screen = Screen {
            is_coloured,
            ..three()
        };
        screen.host_errors = vec!["db: no answer".to_owned()];
        let terminal = drawn(&mut screen, 80, 24);
        let cells = terminal.backend().buffer().content();
        assert_eq!(
            cells.iter().any(|cell| cell.fg != Color::Reset),
            is_coloured
        );
        assert!(
            cells
                .iter()
                .any(|cell| cell.modifier.contains(Modifier::REVERSED))
        );
    }
}

#[test]
fn the_order_is_the_users() {
    for (keys, first) in [
        ("", "2pysv60g"),
        ("r", "9abcdefg"),
        ("o", "2pysv60g"),
        ("oo", "2pysv60g"),
        ("oooo", "9abcdefg"),
        ("ooooo", "9abcdefg"),
        ("ooooor", "2pysv60g"),
        ("oooooo", "4h3q78r4"),
        ("ooooooo", "2pysv60g"),
    ] {
        let mut screen = three();
        let _ = press(&mut screen, keys);
        assert_eq!(screen.shown()[0].record.id.as_str(), first, "{keys}");
    }
}

/// An action as text: the signal or the action, and the jobs.
fn asked(action: Option<Action>) -> String {
    let of = |jobs: &[Record]| {
        let ids: Vec<&str> = jobs.iter().map(|job| job.id.as_str()).collect();
        ids.join(" ")
    };
    match action {
        None => "-".to_owned(),
        Some(Action::Send(signal, jobs)) => format!("{signal} {}", of(&jobs)),
        Some(Action::End(jobs)) => format!("end {}", of(&jobs)),
        Some(Action::Wait(jobs)) => format!("wait {}", of(&jobs)),
        Some(action) => format!("{action:?}"),
    }
}

#[test]
fn keys_ask_for_what_they_say() {
    for (keys, expected, line) in [
        ("t", "TERM 2pysv60g", ""),
        (">k", "KILL 4h3q78r4", ""),
        (">>>>s", "STOP 9abcdefg", ""),
        ("><c", "CONT 2pysv60g", ""),
        ("w", "wait 2pysv60g", ""),
        ("e", "end 2pysv60g", ""),
        ("q", "Quit", ""),
        ("KTSC", "-", ""),
        ("z", "-", ""),
        // Any signal, by its name.
        ("x", "-", "Signal for 1 job: _"),
        ("xusq\u{8}r1\n", "USR1 2pysv60g", ""),
        ("xk", "-", "Signal for 1 job: k_"),
        ("xusr1\u{1b}", "-", ""),
        ("xnosuch\n", "-", "NOSUCH"),
        // Several jobs: KILL, which can't be caught, needs a confirmation.
        ("  t", "TERM 2pysv60g 4h3q78r4", ""),
        ("  k", "-", "Send KILL to 2 jobs? [y/N]"),
        ("  ky", "KILL 2pysv60g 4h3q78r4", ""),
        ("  kn", "-", "nothing was sent"),
        ("  k\n", "-", "nothing was sent"),
        ("  xkill\n", "-", "Send KILL to 2 jobs? [y/N]"),
        ("  x9\n", "-", "Send 9 to 2 jobs? [y/N]"),
        ("  ey", "end 2pysv60g 4h3q78r4", ""),
        ("  e", "-", "Send TERM, then KILL to 2 jobs? [y/N]"),
        ("  \u{1b}k", "KILL 9abcdefg", ""),
        (" < k", "KILL 4h3q78r4", ""),
        // Jobs hidden by a filter are not affected.
        ("/api", "-", "Filter (Enter keeps it, Esc clears it): api_"),
        ("/api\nk", "KILL 9abcdefg", ""),
        ("/EPOCHS\nk", "KILL 2pysv60g", ""),
        ("/unknown\nk", "KILL 9abcdefg", ""),
        ("  /api\nk", "KILL 9abcdefg", ""),
        ("/nothing\nk", "-", ""),
        ("/nothing\n\u{1b}k", "KILL 2pysv60g", ""),
        ("/nothing\u{1b}k", "KILL 2pysv60g", ""),
    ] {
        let mut screen = three();
        drop(drawn(&mut screen, 80, 24));
        assert_eq!(asked(press(&mut screen, keys)), expected, "{keys:?}");
        let shown = &text(&mut screen, 80, 24)[21];
        assert!(
            if line.is_empty() {
                shown.is_empty()
            } else {
                shown.to_uppercase().contains(&line.to_uppercase())
            },
            "{keys:?}: {shown}"
        );
    }
    let mut screen = three();
    let interrupt = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
    assert_eq!(screen.key(interrupt), Some(Action::Interrupt));
}

#[test]
fn the_selection_is_a_jobs_and_not_a_rows() {
    let mut screen = three();
    drop(drawn(&mut screen, 80, 24));
    screen.jobs[1].usage = Some(usage(300.0, 1.0, 1, 1));
    assert!(text(&mut screen, 80, 24)[2].starts_with(" 4h3q78r4"));
    assert_eq!(asked(press(&mut screen, "k")), "KILL 2pysv60g");
}
