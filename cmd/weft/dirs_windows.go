package main

import "os"

// volatileDir is part of a pipe's name.
const volatileDir = "/run"

// persistentDir is where services keep what outlives a restart.
var persistentDir = os.Getenv("ProgramData")
