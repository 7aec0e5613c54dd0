//! The table: what was measured, and the goal beside it.

use std::time::Duration;

use comfy_table::{CellAlignment, Table as Grid, presets};

/// One figure.
struct Row {
    what: String,
    figure: String,
    wall: String,
    goal: String,
    verdict: &'static str,
}

/// See the module.
#[derive(Default)]
pub struct Table {
    rows: Vec<Row>,
}

impl Table {
    /// CPU milliseconds an operation, and the wall time of one; zero: not measured.
    pub fn cpu(&mut self, what: impl Into<String>, cpu: Duration, wall: Duration, goal: Option<f64>) {
        self.rows.push(Row {
            what: what.into(),
            figure: shown(cpu, 2),
            wall: shown(wall, 1),
            goal: goal.map(|goal| format!("{goal} ms")).unwrap_or_default(),
            verdict: verdict(milliseconds(cpu), goal),
        });
    }

    /// Memory in KiB; the goal in MB.
    pub fn memory(&mut self, what: impl Into<String>, kib: Option<u64>, goal: Option<f64>) {
        let megabytes = kib.map(|kib| kib as f64 * 1024.0 / 1e6);
        self.rows.push(Row {
            what: what.into(),
            figure: megabytes.map_or("not to be seen".to_owned(), |megabytes| format!("{megabytes:.2} MB")),
            wall: String::new(),
            goal: goal.map(|goal| format!("{goal} MB")).unwrap_or_default(),
            verdict: megabytes.map_or("", |megabytes| verdict(megabytes, goal)),
        });
    }

    /// To standard output.
    pub fn print(&self) {
        let mut grid = Grid::new();
        grid.load_style(presets::UTF8_BORDERS_ONLY).set_header(["operation", "CPU or memory", "wall", "goal", ""]);
        for row in &self.rows {
            grid.add_row([row.what.as_str(), &row.figure, &row.wall, &row.goal, row.verdict]);
        }
        for index in 1..=3 {
            if let Some(column) = grid.column_mut(index) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        println!("{grid}");
        println!("CPU: daemon, template, supervisors and all their children, containers too, without this client.");
        println!("Wall: as this client sees it; the machine's other work is in it.");
    }
}

fn shown(duration: Duration, digits: usize) -> String {
    if duration.is_zero() { String::new() } else { format!("{:.digits$} ms", milliseconds(duration)) }
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn verdict(figure: f64, goal: Option<f64>) -> &'static str {
    match goal {
        Some(goal) if figure <= goal => "reached",
        Some(_) => "missed",
        None => "",
    }
}
