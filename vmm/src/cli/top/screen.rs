//! The screen.

use std::time::Duration;

use ratatui::Frame;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Gauge, Paragraph, Row, Table, TableState};
use tokio::sync::mpsc;

use super::Sample;
use super::page::{self, Page, Sort};
use crate::api::types::NodeState;
use crate::client::Client;
use crate::failure::{Code, Failure};
use crate::lab::EndSignals;

/// Share of a processor from which on a node is shown as busy.
const BUSY: f64 = 0.8;
/// Share of the time from which on waiting for a processor is shown.
const WAITING: f64 = 0.1;
/// Rows that a page key goes on by.
const LEAP: isize = 10;
/// Keys that may wait to be taken.
const KEYS: usize = 64;

/// Shows the lab until the person leaves or it ends.
pub async fn show(client: &Client, interval: Duration, sort: Sort) -> Result<(), Failure> {
    let cannot = |error: std::io::Error| {
        Failure::new(Code::General, format!("cannot use this terminal: {error}"))
    };
    let mut signals = EndSignals::listen()?;
    // Before the screen is taken, so that a lab that does not answer is told on a screen that works.
    let mut now = Sample::take(client).await?;
    let mut terminal = ratatui::try_init().map_err(cannot)?;
    let _restored = Restored;
    let mut events = read_events();
    let mut view = View::new(sort);
    let mut before: Option<Sample> = None;
    let mut looks = tokio::time::interval(interval);
    looks.tick().await;
    loop {
        let page = Page::of(before.as_ref(), &now, view.sort);
        terminal
            .draw(|frame| view.draw(frame, &page))
            .map_err(cannot)?;
        tokio::select! {
            () = signals.come() => return Ok(()),
            event = events.recv() => match event {
                Some(Event::Key(key)) if view.press(key) => return Ok(()),
                // Of anything else, such as another size, the next picture takes care.
                Some(_) => {}
                // The terminal is gone.
                None => return Ok(()),
            },
            _ = looks.tick() => {
                before = Some(std::mem::replace(&mut now, Sample::take(client).await?));
            }
        }
    }
}

/// Gives the terminal back, whatever happens.
struct Restored;

impl Drop for Restored {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

/// What the person does, read by a thread of its own, as reading blocks. It ends with the process.
fn read_events() -> mpsc::Receiver<Event> {
    let (sender, receiver) = mpsc::channel(KEYS);
    std::thread::spawn(move || {
        while let Ok(event) = event::read() {
            if sender.blocking_send(event).is_err() {
                break;
            }
        }
    });
    receiver
}

/// How the page is looked at.
#[derive(Debug)]
struct View {
    sort: Sort,
    /// Whether the arrows are for the links.
    on_links: bool,
    nodes: TableState,
    links: TableState,
}

impl View {
    fn new(sort: Sort) -> Self {
        Self {
            sort,
            on_links: false,
            nodes: TableState::default(),
            links: TableState::default(),
        }
    }

    /// Does what a key says; whether the person leaves.
    fn press(&mut self, key: KeyEvent) -> bool {
        if key.kind == KeyEventKind::Release {
            return false;
        }
        match key.code {
            KeyCode::Char('q') | KeyCode::Esc => return true,
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return true,
            KeyCode::Char('n') => self.sort = Sort::File,
            KeyCode::Char('c') => self.sort = Sort::Cpu,
            KeyCode::Char('m') => self.sort = Sort::Memory,
            KeyCode::Char('t') => self.sort = Sort::Traffic,
            KeyCode::Char('d') => self.sort = Sort::Drops,
            KeyCode::Char('l') => self.sort = Sort::Lateness,
            KeyCode::Tab | KeyCode::BackTab => self.on_links = !self.on_links,
            KeyCode::Up => self.scroll(-1),
            KeyCode::Down => self.scroll(1),
            KeyCode::PageUp => self.scroll(-LEAP),
            KeyCode::PageDown => self.scroll(LEAP),
            KeyCode::Home => *self.offset() = 0,
            _ => {}
        }
        false
    }

    fn offset(&mut self) -> &mut usize {
        if self.on_links {
            self.links.offset_mut()
        } else {
            self.nodes.offset_mut()
        }
    }

    fn scroll(&mut self, rows: isize) {
        let offset = self.offset();
        *offset = offset.saturating_add_signed(rows);
    }

    fn draw(&mut self, frame: &mut Frame<'_>, page: &Page) {
        let bottom = 1;
        let [head, gauge, nodes, links, foot] = Layout::vertical([
            Constraint::Length(2),
            Constraint::Length(2),
            // As many rows as there are, but no more than half of the screen.
            Constraint::Max(nodes_height(page, frame.area())),
            Constraint::Min(3),
            Constraint::Length(bottom),
        ])
        .areas(frame.area());
        frame.render_widget(Paragraph::new(page.head().map(Line::from).to_vec()), head);
        let share = page.host_cpu.clamp(0.0, 1.0);
        let busy = Gauge::default()
            .ratio(share)
            .gauge_style(Style::new().fg(level(share)));
        frame.render_widget(
            busy,
            Rect {
                width: gauge.width.min(60),
                height: gauge.height.min(1),
                ..gauge
            },
        );
        let node_style = |index: usize| {
            let node = &page.nodes[index];
            let bad = matches!(node.state, NodeState::Failed | NodeState::Ended);
            let waits = node.waits.is_some_and(|waits| waits > WAITING);
            match node.cpu {
                _ if bad => Style::new().fg(Color::Red),
                _ if waits => Style::new().fg(Color::Magenta),
                Some(cpu) if cpu > BUSY => Style::new().fg(Color::Yellow),
                _ => Style::new(),
            }
        };
        let link_style = |index: usize| {
            let link = &page.links[index];
            match link.drops_per_second {
                _ if !link.up => Style::new().fg(Color::Red),
                0 => Style::new(),
                _ => Style::new().fg(Color::Yellow),
            }
        };
        let (node_rows, link_rows) = (page.node_rows(), page.link_rows());
        render(
            frame,
            nodes,
            &page::NODES,
            &node_rows,
            &mut self.nodes,
            !self.on_links,
            node_style,
        );
        render(
            frame,
            links,
            &page::LINKS,
            &link_rows,
            &mut self.links,
            self.on_links,
            link_style,
        );
        let keys = "sort: c cpu  m memory  t traffic  d drops  l lateness  n file    Tab: other table    q: leave";
        frame.render_widget(
            Paragraph::new(keys).style(Style::new().fg(Color::DarkGray)),
            foot,
        );
    }
}

fn nodes_height(page: &Page, area: Rect) -> u16 {
    let rows = u16::try_from(page.nodes.len()).unwrap_or(u16::MAX);
    rows.saturating_add(2).min((area.height / 2).max(4))
}

fn level(share: f64) -> Color {
    match share {
        share if share > 0.9 => Color::Red,
        share if share > 0.6 => Color::Yellow,
        _ => Color::Green,
    }
}

fn render(
    frame: &mut Frame<'_>,
    area: Rect,
    headings: &[&'static str],
    rows: &[Vec<String>],
    state: &mut TableState,
    active: bool,
    style: impl Fn(usize) -> Style,
) {
    let widths = (0..headings.len()).map(|column| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        let width = cells.fold(headings[column].chars().count(), usize::max);
        Constraint::Length(u16::try_from(width).unwrap_or(u16::MAX))
    });
    let widths: Vec<_> = widths.collect();
    // The last row stays on the screen.
    *state.offset_mut() = state.offset().min(
        rows.len()
            .saturating_sub(usize::from(area.height.saturating_sub(2)).max(1)),
    );
    let modifier = if active {
        Modifier::REVERSED | Modifier::BOLD
    } else {
        Modifier::BOLD | Modifier::UNDERLINED
    };
    let header = Row::new(headings.to_vec()).style(Style::new().add_modifier(modifier));
    let rows = rows
        .iter()
        .enumerate()
        .map(|(index, row)| Row::new(row.clone()).style(style(index)));
    let table = Table::new(rows, widths).header(header).column_spacing(2);
    frame.render_stateful_widget(table, area, state);
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::super::page::tests::sample;
    use super::*;

    fn text(view: &mut View, page: &Page, size: (u16, u16)) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(size.0, size.1)).unwrap();
        terminal.draw(|frame| view.draw(frame, page)).unwrap();
        let buffer = terminal.backend().buffer().clone();
        let row = |y: u16| {
            (0..size.0)
                .map(|x| buffer[(x, y)].symbol().to_owned())
                .collect::<String>()
        };
        (0..size.1).map(|y| row(y).trim_end().to_owned()).collect()
    }

    #[test]
    fn a_screen_of_any_size_shows_what_fits() {
        let page = Page::of(Some(&sample(10_000, 0)), &sample(12_000, 2000), Sort::File);
        let mut view = View::new(Sort::File);
        let lines = text(&mut view, &page, (120, 24));
        assert!(lines[0].starts_with("lab two, running"), "{lines:#?}");
        let shown = |words: &[&str]| {
            lines
                .iter()
                .any(|line| words.iter().all(|word| line.contains(word)))
        };
        assert!(
            shown(&["NODE", "CPU", "MEMORY"]) && shown(&["r", "router", "50 %", "113 MiB"]),
            "{lines:#?}"
        );
        assert!(
            shown(&["a:eth0", "r:eth0", "992 kbit/s", "20 µs", "rate=10Mbit"]),
            "{lines:#?}"
        );
        assert!(lines[23].contains("q: leave"), "{lines:#?}");
        for size in [(20, 3), (1, 1), (40, 10), (300, 90)] {
            text(&mut view, &page, size);
        }
    }

    #[test]
    fn keys_sort_scroll_and_leave() {
        let mut view = View::new(Sort::File);
        let key = |code| KeyEvent::new(code, KeyModifiers::NONE);
        assert!(!view.press(key(KeyCode::Char('c'))));
        assert_eq!(view.sort, Sort::Cpu);
        view.press(key(KeyCode::Tab));
        view.press(key(KeyCode::Down));
        assert_eq!((view.nodes.offset(), view.links.offset()), (0, 1));
        view.press(key(KeyCode::PageUp));
        assert_eq!(view.links.offset(), 0);
        assert!(view.press(key(KeyCode::Char('q'))));
        assert!(view.press(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL)));
        // Beyond the end there is nothing to see.
        view.press(key(KeyCode::PageDown));
        let page = Page::of(None, &sample(12_000, 2000), Sort::File);
        text(&mut view, &page, (80, 24));
        assert_eq!(view.links.offset(), 0);
    }
}
