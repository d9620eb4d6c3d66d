"""Learned collective variables: time-lagged (TICA, deep TICA) and discriminant (LDA, deep TDA)."""
