"""The command line of operators. Commands parse, call one service and present."""
