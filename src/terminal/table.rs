//! Tables that fit the terminal.

use std::fmt;

use tabled::builder::Builder;
use tabled::settings::object::Rows;
use tabled::settings::peaker::PriorityMax;
use tabled::settings::{Color, Modify, Padding, Style, Width};

use super::print;

/// A header and rows.
#[derive(Default)]
pub struct Table(Builder);

impl Table {
    pub fn new(header: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let mut builder = Builder::default();
        builder.push_record(header);
        Self(builder)
    }

    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.0.push_record(cells);
    }
}

impl fmt::Display for Table {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = self.0.clone().build();
        table.with(Style::empty()).with(Padding::new(0, 2, 0, 0));
        if let Some(width) = print::width() {
            table.with(
                Width::truncate(width)
                    .suffix("…")
                    .priority(PriorityMax::right()),
            );
        }
        if print::is_coloured() {
            table.with(Modify::new(Rows::first()).with(Color::BOLD));
        }
        let text = table.to_string();
        let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
        formatter.write_str(&lines.join("\n"))
    }
}
