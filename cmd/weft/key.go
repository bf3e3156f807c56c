package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/weft-net/weft/control/agent"
)

// wireGuardOptions are the flags about WireGuard.
type wireGuardOptions struct {
	engine, stateDir, preshared string
	vxlan                       bool
	maxAge, step                time.Duration
}

const wireGuardOff = "off"

func (w *wireGuardOptions) register(f *pflag.FlagSet) {
	f.StringVar(&w.engine, "wireguard", "auto", "who carries WireGuard: auto, kernel, userspace, or off; which peers use it is for net-conf.json\n"+
		"(Backend.Prefer, Backend.Encrypt) and for what they offer")
	f.BoolVar(&w.vxlan, "vxlan", true, "terminate VXLAN; with =false peers reach this host by WireGuard alone")
	f.StringVar(&w.stateDir, "state-dir", defaultStateDir(), "directory of what outlives a reboot: this host's WireGuard key")
	f.StringVar(&w.preshared, "psk-file", "", "file with the pre-shared key of all hosts, as 'wg genpsk' writes it; goes before net-conf.json's Backend.PSK")
	f.DurationVar(&w.maxAge, "key-max-age", 0, "age at which another WireGuard key takes the place of this host's; 0: never by itself (see 'weft key rotate')")
	f.DurationVar(&w.step, "key-step", agent.DefaultKeyStep, "time that peers get to hear of each of the two steps of that")
}

// config is what the flags mean; nil: no WireGuard.
func (w *wireGuardOptions) config() (*agent.WireGuard, error) {
	switch {
	case w.engine == wireGuardOff && !w.vxlan:
		return nil, usageError{errors.New("--wireguard=off does not go with --vxlan=false: nobody could reach this host")}
	case w.engine == wireGuardOff:
		return nil, nil
	case w.step < time.Second:
		return nil, usageError{fmt.Errorf("--key-step %v: want a second or more: it is what peers need to hear of a new key", w.step)}
	case w.maxAge != 0 && w.maxAge < 4*w.step:
		return nil, usageError{fmt.Errorf("--key-max-age %v: want 0, or at least %v, four times --key-step", w.maxAge, 4*w.step)}
	}
	return &agent.WireGuard{
		KeyFile: filepath.Join(w.stateDir, "wireguard.key"), ContactsFile: filepath.Join(w.stateDir, "wireguard.peers"),
		PresharedFile: w.preshared, Engine: w.engine, MaxAge: w.maxAge, Step: w.step,
	}, nil
}

// defaultStateDir is the system's, or below what the XDG base directory
// specification names.
func defaultStateDir() string {
	if !ordinaryUser() {
		return filepath.Join(persistentDir, "weft")
	}
	if dir := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "weft")
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return filepath.Join(defaultRunDir(), "state")
	}
	return filepath.Join(home, ".local", "state", "weft")
}

func keyCommand() *cobra.Command {
	var ask asking
	var format format
	command := &cobra.Command{
		Use:   "key",
		Short: "Show this host's WireGuard key, or have another take its place",
		Long: "Show the public part of this host's WireGuard key, by which its peers know it, and how far another is in\n" +
			"taking its place. The private part is in a file below the agent's --state-dir, and shown by nothing.",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := format.check(); err != nil {
				return err
			}
			status, err := ask.status(cmd.Context())
			if err != nil {
				return err
			}
			if status.WireGuard == nil {
				return errors.New("this host is not a member yet: see weft status")
			}
			return format.print(cmd.OutOrStdout(), status.WireGuard, func(w io.Writer) error { return printKey(w, *status.WireGuard, time.Now()) })
		},
	}
	format.register(command.Flags())
	ask.register(command.PersistentFlags())
	command.AddCommand(&cobra.Command{
		Use:   "rotate",
		Short: "Have another key take the place of this host's",
		Long: "Have another key take the place of this host's, without a packet lost: peers are told of it and accept both,\n" +
			"then this host uses the new one, and then the old one is forgotten, with --key-step of the agent in between.\n" +
			"flanneld knows of one key only, and loses its connection to this host until it has heard of the new one.",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return agent.RotateKey(cmd.Context(), ask.socket) },
	})
	return command
}

// keyPhases are the phases of a rotation for people.
var keyPhases = map[string]string{"": "in use", "announced": "in use; the next one is announced", "switched": "in use; the one before is still accepted"}

func printKey(w io.Writer, s agent.WireGuardStatus, now time.Time) error {
	out := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	if s.Engine == "" {
		fmt.Fprintf(out, "engine\tnone (%s)\n", s.Reason)
		return out.Flush()
	}
	fmt.Fprintf(out, "engine\t%s (%s)\nkey\t%s\n", s.Engine, s.Reason, s.Key)
	if s.Other != "" {
		fmt.Fprintf(out, "other\t%s\n", s.Other)
	}
	phase := keyPhases[s.Phase]
	if s.Since != nil {
		phase += fmt.Sprintf(", for %s", now.Sub(*s.Since).Truncate(time.Second))
	}
	fmt.Fprintf(out, "phase\t%s\n", phase)
	return out.Flush()
}
