package main

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/kardianos/service"
)

// fakeManager remembers what was asked of it.
type fakeManager struct {
	config *service.Config
	calls  []string
	status service.Status
	err    error
}

func (f *fakeManager) call(name string) error {
	f.calls = append(f.calls, name)
	return f.err
}
func (f *fakeManager) Install() error                  { return f.call("install") }
func (f *fakeManager) Uninstall() error                { return f.call("uninstall") }
func (f *fakeManager) Start() error                    { return f.call("start") }
func (f *fakeManager) Stop() error                     { return f.call("stop") }
func (f *fakeManager) Status() (service.Status, error) { return f.status, f.err }

func TestServiceCommand(t *testing.T) {
	denied := errors.New("needs rights")
	for _, tt := range []struct {
		args   []string
		manage fakeManager
		rights error
		calls  []string
		out    string
		err    string
	}{
		{args: []string{"install", "--", "--device=netstack", "a b"}, calls: []string{"install"}, out: "service weft installed\n"},
		{args: []string{"install", "--device=netstack"}, err: "unknown flag"},
		{args: []string{"install", "agent"}, err: "follow --"},
		{args: []string{"install"}, rights: denied, err: "needs rights"},
		{args: []string{"install"}, manage: fakeManager{err: errors.New("there already")}, calls: []string{"install"}, err: "service weft is not installed: there already"},
		{args: []string{"--name=weft-2", "start"}, calls: []string{"start"}, out: "service weft-2 started\n"},
		{args: []string{"stop"}, calls: []string{"stop"}, out: "service weft stopped\n"},
		{args: []string{"stop", "now"}, err: "unexpected argument"},
		{args: []string{"uninstall"}, calls: []string{"uninstall"}, out: "service weft uninstalled\n"},
		{args: []string{"start", "--name=../weft"}, err: "want letters"},
		{args: []string{"status"}, manage: fakeManager{status: service.StatusRunning}, rights: denied, out: "service weft is running\n"},
		{args: []string{"status"}, manage: fakeManager{status: service.StatusStopped}, out: "service weft is stopped\n"},
		{args: []string{"status"}, manage: fakeManager{err: service.ErrNotInstalled}, out: "service weft is not installed\n"},
		{args: []string{"status"}, manage: fakeManager{err: errors.New("no bus")}, err: "no bus"},
	} {
		manage := tt.manage
		command := serviceCommand(services{
			open: func(config *service.Config) (serviceManager, error) {
				manage.config = config
				return &manage, nil
			},
			check: func(serviceOptions) error { return tt.rights },
		})
		var out bytes.Buffer
		command.SetArgs(tt.args)
		command.SetOut(&out)
		command.SilenceErrors, command.SilenceUsage = true, true
		err := command.Execute()
		if !slices.Equal(manage.calls, tt.calls) || out.String() != tt.out || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%q: %q %q, %v", tt.args, manage.calls, out.String(), err)
		}
	}
}

func TestServiceConfig(t *testing.T) {
	config, err := serviceOptions{name: "weft", user: true}.config([]string{"--device=netstack", "--node-name=my laptop"})
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"agent", "--device=netstack", "--node-name=my laptop"}; !slices.Equal(config.Arguments, want) {
		t.Errorf("arguments %q, want %q", config.Arguments, want)
	}
	if config.Option["UserService"] != true || config.Option["RunAtLoad"] != true {
		t.Errorf("options %v", config.Option)
	}
	for name, want := range map[string]bool{"weft": true, "weft-2.test": true, "": false, "-x": false, "a/b": false, "a b": false} {
		if validServiceName(name) != want {
			t.Errorf("name %q is valid: %t", name, !want)
		}
	}
}
