package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kardianos/service"
)

// TestSystemdUnit: what is written for systemd, of a user as the files of the
// system are not a test's to write.
func TestSystemdUnit(t *testing.T) {
	home, programs := t.TempDir(), t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("PATH", programs)
	asked := filepath.Join(home, "asked")
	if err := os.WriteFile(filepath.Join(programs, "systemctl"), []byte("#!/bin/sh\necho \"$*\" >>"+asked+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	config, err := serviceOptions{name: "weft-test", user: true}.config([]string{"--device=netstack", "--node-name=50% of $HOME \\ \"x\""})
	if err != nil {
		t.Fatal(err)
	}
	systems := service.AvailableSystems()
	i := slices.IndexFunc(systems, func(s service.System) bool { return s.String() == "linux-systemd" })
	if i < 0 {
		t.Fatal("the library knows no systemd")
	}
	manager, err := systems[i].New(hosted{}, config)
	if err != nil {
		t.Fatal(err)
	}
	if err := manager.Install(); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	unit, err := os.ReadFile(filepath.Join(home, ".config/systemd/user/weft-test.service"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"\nExecStart=" + self + ` "agent" "--device=netstack" "--node-name=50%% of $$HOME \\ \"x\""` + "\n",
		"\nType=notify\n", "\nRestart=always\n", "\nKillMode=process\n", "\nWantedBy=default.target\n",
	} {
		if !strings.Contains(string(unit), want) {
			t.Errorf("no line %q in\n%s", want, unit)
		}
	}
	if err := manager.Uninstall(); err != nil {
		t.Fatal(err)
	}
	if calls, err := os.ReadFile(asked); err != nil || !strings.Contains(string(calls), "enable --user weft-test.service\ndaemon-reload --user\ndisable --user weft-test.service") {
		t.Errorf("systemctl was asked %q, %v", calls, err)
	}
	if _, err := (serviceOptions{name: "weft"}).config([]string{"a\nExecStartPre=evil"}); err == nil {
		t.Error("a line break was accepted")
	}
	system, err := serviceOptions{name: "weft"}.config(nil)
	if err != nil || !strings.HasSuffix(system.Option["SystemdScript"].(string), "WantedBy=multi-user.target\n") {
		t.Errorf("unit of the system: %v, %v", system, err)
	}
}
