"""Pages of runs, studies and audits. May import studies, evaluation and what lies below."""
