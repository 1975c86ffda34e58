//! The command line: commands, exit codes, settings, and the tables that the documents hold of them.

mod causes;
mod commands;
mod doctor;
mod kes_cli;
mod settings;
