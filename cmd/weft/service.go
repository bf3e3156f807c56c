package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/kardianos/service"
	"github.com/spf13/cobra"
)

// serviceOptions are the flags of all commands about the service.
type serviceOptions struct {
	name string
	user bool
}

// serviceManager is what starts programs on this system, with one service.
// service.Service is one.
type serviceManager interface {
	Install() error
	Uninstall() error
	Start() error
	Stop() error
	Status() (service.Status, error)
}

// services is what the commands need of the system.
type services struct {
	open func(*service.Config) (serviceManager, error)
	// check says why this user may not change the service.
	check func(o serviceOptions) error
}

// systemServices are those of this system.
func systemServices() services {
	return services{
		open: func(config *service.Config) (serviceManager, error) {
			return service.New(hosted{}, config)
		},
		check: checkServiceRights,
	}
}

// hosted is a service in the eyes of who installs it: what it does when started
// is the installed program's business.
type hosted struct{}

func (hosted) Start(service.Service) error { return nil }
func (hosted) Stop(service.Service) error  { return nil }

func serviceCommand(on services) *cobra.Command {
	var o serviceOptions
	command := &cobra.Command{
		Use:   "service",
		Short: "Let the system start the agent: systemd, launchd or the Windows service manager",
		Long: "Let the system start the agent, and again whenever it ends: systemd, launchd (macOS) or the Windows\n" +
			"service manager. It needs root or an administrator; --user makes a service of this user alone, on Linux\n" +
			"and macOS. Under Windows the agent then writes to %ProgramData%\\weft\\weft.log.",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	command.PersistentFlags().StringVar(&o.name, "name", "weft", "the service's name, for more than one on a host")
	command.PersistentFlags().BoolVar(&o.user, "user", false, "a service of this user alone, without rights (Linux and macOS)")
	install := &cobra.Command{
		Use:   "install [-- AGENT-FLAG...]",
		Short: "Make the service; what follows -- are the agent's flags",
		Long: "Make the service, to be started with the system, and with 'weft service start' at once. What follows -- are\n" +
			"the agent's flags, which the service keeps, as in\n" +
			"  weft service install -- --device=netstack --etcd-endpoints=https://10.0.0.1:2379",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 && cmd.ArgsLenAtDash() != 0 {
				return usageError{fmt.Errorf("unexpected argument %q: the agent's flags follow --", args[0])}
			}
			return o.change(cmd.OutOrStdout(), on, args, "installed", serviceManager.Install)
		},
	}
	command.AddCommand(install)
	for _, verb := range []struct {
		name, short, done string
		do                func(serviceManager) error
	}{
		{"start", "Start the installed service", "started", serviceManager.Start},
		{"stop", "Stop the service until it is started or the system is", "stopped", serviceManager.Stop},
		{"uninstall", "Remove the service; 'weft service stop' first", "uninstalled", serviceManager.Uninstall},
	} {
		command.AddCommand(&cobra.Command{Use: verb.name, Short: verb.short, Args: noArgs, RunE: func(cmd *cobra.Command, _ []string) error {
			return o.change(cmd.OutOrStdout(), on, nil, verb.done, verb.do)
		}})
	}
	command.AddCommand(&cobra.Command{Use: "status", Short: "Say whether the service runs", Args: noArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		return o.status(cmd.OutOrStdout(), on)
	}})
	return command
}

// change does what needs rights.
func (o serviceOptions) change(out io.Writer, on services, arguments []string, done string, do func(serviceManager) error) error {
	if err := on.check(o); err != nil {
		return err
	}
	manager, err := o.open(on, arguments)
	if err != nil {
		return err
	}
	if err := do(manager); err != nil {
		return fmt.Errorf("service %s is not %s: %w", o.name, done, err)
	}
	_, err = fmt.Fprintf(out, "service %s %s\n", o.name, done)
	return err
}

func (o serviceOptions) status(out io.Writer, on services) error {
	manager, err := o.open(on, nil)
	if err != nil {
		return err
	}
	status, err := manager.Status()
	text := map[service.Status]string{service.StatusRunning: "running", service.StatusStopped: "stopped"}[status]
	switch {
	case errors.Is(err, service.ErrNotInstalled):
		text = "not installed"
	case err != nil:
		return fmt.Errorf("ask for service %s: %w", o.name, err)
	case text == "":
		text = "in an unknown state"
	}
	_, err = fmt.Fprintf(out, "service %s is %s\n", o.name, text)
	return err
}

func (o serviceOptions) open(on services, arguments []string) (serviceManager, error) {
	config, err := o.config(arguments)
	if err != nil {
		return nil, err
	}
	manager, err := on.open(config)
	if err != nil {
		return nil, fmt.Errorf("find this system's service manager: %w", err)
	}
	return manager, nil
}

// config is the service with the agent's arguments.
func (o serviceOptions) config(arguments []string) (*service.Config, error) {
	if !validServiceName(o.name) {
		return nil, usageError{fmt.Errorf("--name %q: want letters, digits, dots and dashes", o.name)}
	}
	config := &service.Config{
		Name: o.name, DisplayName: "weft pod network", Description: "weft pod network", Arguments: []string{"agent"},
		Option: service.KeyValue{
			"UserService": o.user,
			"RunAtLoad":   true,      // launchd
			"OnFailure":   "restart", // Windows
		},
	}
	for _, argument := range arguments {
		written, err := serviceArgument(argument)
		if err != nil {
			return nil, usageError{fmt.Errorf("agent flag %q: %w", argument, err)}
		}
		config.Arguments = append(config.Arguments, written)
	}
	completeService(config, o)
	return config, nil
}

// validServiceName keeps a name from being a path.
func validServiceName(name string) bool {
	for i, r := range name {
		letter := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
		if !letter && (i == 0 || r != '.' && r != '-' && r != '_') {
			return false
		}
	}
	return name != ""
}
