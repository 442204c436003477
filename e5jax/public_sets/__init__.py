"""The paper's public training sets: files of public copies → rows → examples → records of a named set."""
