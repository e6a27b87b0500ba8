"""The report: tables, figures, one HTML file."""
