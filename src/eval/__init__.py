"""From records to answers: scores, comparison tables, figures."""
