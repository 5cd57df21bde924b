"""The bugs that others shipped, as switchable mutants of this code: do the tests notice?

Production code holds no switch. A mutant is a row of a table (`tests.mutants.table`): the text of one production rule,
and what the text becomes when somebody forgets the rule. `LOGD_MUTANT=<name>` rewrites the module's source while it is
imported (`tests.mutants.hook`); every row names the tests that must fail then, and pass without.

    python -m tests.mutants                     the list
    python -m tests.mutants --run [NAME …]      each mutant against the tests that kill it
    python -m tests.mutants --by-simulator …    each mutant against seeds of the simulator
    python -m tests.mutants --table             the list as a Markdown table, for the documentation
"""
