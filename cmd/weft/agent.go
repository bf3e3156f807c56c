package main

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/weft-net/weft/control/agent"
	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/datapath"
	"github.com/weft-net/weft/tunnel/underlay"
)

// options are the agent's flags: flanneld's, by their names, and our own.
type options struct {
	etcdEndpoints, etcdPrefix               string
	etcdKeyFile, etcdCertFile, etcdCAFile   string
	etcdUsername, etcdPassword              string
	ifaces, ifaceRegex                      []string
	ifaceCanReach, publicIP, publicIPv6     string
	subnetFile                              string
	renewMargin                             int
	ipMasq, masqRandomOff                   bool
	kube                                    bool
	kubeAPI, kubeconfig, kubePrefix         string
	netConfPath                             string
	healthIP                                string
	healthPort                              int
	resync                                  int
	forwardRules, blackhole, setUnavailable bool
	printVersion                            bool
	verbosity                               int
	vmodule, backtraceAt                    string
	engine, device, node, runDir, socket    string
	workers                                 int
	busyPoll                                time.Duration
	offload                                 map[string]string
	logFormat, logLevel                     string
	rootless                                rootless
	wireGuard                               wireGuardOptions
	netstack                                netstackOptions
	invited
}

func agentCommand() *cobra.Command {
	var o options
	command := &cobra.Command{
		Use:   "agent",
		Short: "Make this host a member of the pod network",
		Long: "Make this host a member of the pod network and keep it one.\n\n" +
			"Takes flanneld's flags and its FLANNELD_* environment variables. SIGTERM ends the agent and leaves\n" +
			"traffic of the kernel engine running; 'weft cleanup' removes what the agent has put into the kernel.",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.printVersion {
				fmt.Fprintln(cmd.OutOrStdout(), "weft", version())
				return nil
			}
			if err := fromEnvironment(cmd.Flags()); err != nil {
				return err
			}
			return runAgent(cmd.Context(), o)
		},
	}
	o.register(command.Flags())
	return command
}

func (o *options) register(f *pflag.FlagSet) {
	f.SortFlags = false
	f.StringVar(&o.engine, "engine", "auto", "who carries packets: auto, kernel or userspace")
	f.StringVar(&o.device, "device", "auto", "where packets enter the engine: auto, kernel, tun or netstack")
	f.IntVar(&o.workers, "workers", 0, "threads of the userspace engine; 0: one on up to 3 CPUs, else half as many as CPUs, at most 4")
	f.StringToStringVar(&o.offload, "offload", nil, "what the userspace engine leaves to others, as in gso=off,uso=on (auto, on or off each):\n"+
		"tso, uso: TCP and UDP super-packets of the TUN; gso, gro: runs of datagrams sent and received;\n"+
		"ring: io_uring to read and write with few system calls; checksum: inner checksums left to peers;\n"+
		"acks: TCP acknowledgements left out where the next says more.\n"+
		"on: though the kernel's version or a probe speaks against it")
	f.DurationVar(&o.busyPoll, "busy-poll", datapath.DefaultBusyPoll, "how long a thread of the userspace engine stays awake for the next packet of traffic to and fro; 0: it sleeps at once. Linux only")
	f.StringVar(&o.node, "node-name", "", "this host's name; its Node's name in Kubernetes (default $NODE_NAME, else the host name)")
	o.wireGuard.register(f)
	o.registerRootless(f)
	o.netstack.register(f)
	o.registerInvite(f)
	f.StringVar(&o.runDir, "run-dir", defaultRunDir(), "directory of the local API socket")
	f.StringVar(&o.socket, "socket", "", "local API socket (default RUN-DIR/weft.sock)")
	f.StringVar(&o.logFormat, "log-format", "text", "text or json")
	f.StringVar(&o.logLevel, "log-level", "info", "debug, info, warn or error")

	f.StringVar(&o.etcdEndpoints, "etcd-endpoints", "http://127.0.0.1:4001,http://127.0.0.1:2379", "comma-separated etcd endpoints")
	f.StringVar(&o.etcdPrefix, "etcd-prefix", "/coreos.com/network", "etcd key prefix")
	f.StringVar(&o.etcdKeyFile, "etcd-keyfile", "", "etcd client key file")
	f.StringVar(&o.etcdCertFile, "etcd-certfile", "", "etcd client certificate file")
	f.StringVar(&o.etcdCAFile, "etcd-cafile", "", "file of the authority that signed etcd's certificate")
	f.StringVar(&o.etcdUsername, "etcd-username", "", "etcd user")
	f.StringVar(&o.etcdPassword, "etcd-password", "", "etcd password; better given as FLANNELD_ETCD_PASSWORD, which other users cannot read")
	f.StringSliceVar(&o.ifaces, "iface", nil, "interface name or IP for traffic between hosts; repeatable, first match wins")
	f.StringSliceVar(&o.ifaceRegex, "iface-regex", nil, "regular expression on IPs, then on names; repeatable, tried after --iface")
	f.StringVar(&o.ifaceCanReach, "iface-can-reach", "", "use the interface this IP is routed through; tried last")
	f.StringVar(&o.subnetFile, "subnet-file", defaultSubnetFile(), "where to write the subnet for CNI")
	f.StringVar(&o.publicIP, "public-ip", "", "IPv4 address published to other hosts")
	f.StringVar(&o.publicIPv6, "public-ipv6", "", "IPv6 address published to other hosts")
	f.IntVar(&o.renewMargin, "subnet-lease-renew-margin", 60, "minutes before expiry at which an etcd lease is renewed (1 to 1439)")
	f.BoolVar(&o.ipMasq, "ip-masq", false, "masquerade traffic that leaves the pod network")
	f.BoolVar(&o.masqRandomOff, "ip-masq-fully-random-disable", false, "do not randomise masqueraded source ports")
	f.BoolVar(&o.kube, "kube-subnet-mgr", false, "lease from Kubernetes Nodes instead of etcd")
	f.StringVar(&o.kubeAPI, "kube-api-url", "", "Kubernetes API server URL; not needed inside a pod or with --kubeconfig-file")
	f.StringVar(&o.kubePrefix, "kube-annotation-prefix", "flannel.alpha.coreos.com", "prefix of Node annotations")
	f.StringVar(&o.kubeconfig, "kubeconfig-file", "", "kubeconfig file (default: the pod's service account)")
	f.StringVar(&o.healthIP, "healthz-ip", "0.0.0.0", "address of /healthz, /readyz and /metrics")
	f.IntVar(&o.healthPort, "healthz-port", 0, "port of /healthz, /readyz and /metrics; 0: none")
	f.IntVar(&o.resync, "iptables-resync", 5, "seconds between read-backs of everything weft keeps in the kernel")
	f.BoolVar(&o.forwardRules, "iptables-forward-rules", runtime.GOOS == "linux", "accept forwarded pod traffic")
	f.BoolVar(&o.blackhole, "ip-blackhole-route", false, "add a blackhole route for this host's own subnet")
	f.StringVar(&o.netConfPath, "net-config-path", "/etc/kube-flannel/net-conf.json", "network configuration, with --kube-subnet-mgr")
	f.BoolVar(&o.setUnavailable, "set-node-network-unavailable", true, "set the Node's NetworkUnavailable condition to False once ready")
	f.BoolVar(&o.printVersion, "version", false, "print the version and exit")
	f.IntVarP(&o.verbosity, "v", "v", 0, "flanneld's verbosity: 1 and above is --log-level=debug")
	f.StringVar(&o.vmodule, "vmodule", "", "accepted for flanneld's sake, without effect")
	f.StringVar(&o.backtraceAt, "log_backtrace_at", "", "accepted for flanneld's sake, without effect")
}

// runAgent builds the parts and runs them.
func runAgent(ctx context.Context, o options) error {
	logger, err := o.logger()
	if err != nil {
		return err
	}
	if err := o.applyInvite(); err != nil {
		return err
	}
	if o.node == "" {
		o.node = os.Getenv("NODE_NAME")
	}
	if o.node == "" && !o.kube {
		if o.node, err = os.Hostname(); err != nil {
			return fmt.Errorf("find this host's name: %w (set --node-name)", err)
		}
	}
	if o.socket == "" {
		o.socket = o.runDir + "/weft.sock"
	}
	if o.renewMargin < 1 || o.renewMargin > 1439 {
		return usageError{fmt.Errorf("--subnet-lease-renew-margin %d: want 1 to 1439 minutes", o.renewMargin)}
	}
	if o.workers < 0 || o.workers > datapath.MaxWorkers {
		return usageError{fmt.Errorf("--workers %d: want 0 (by the number of CPUs) to %d", o.workers, datapath.MaxWorkers)}
	}
	if o.busyPoll < 0 || o.busyPoll > datapath.MaxBusyPoll {
		return usageError{fmt.Errorf("--busy-poll %v: want 0 (none) to %v", o.busyPoll, datapath.MaxBusyPoll)}
	}
	if o.engine, err = o.chosenEngine(); err != nil {
		return err
	}
	offloads, kept, err := o.offloads()
	if err != nil {
		return err
	}
	choice, err := o.underlayRequest()
	if err != nil {
		return err
	}
	inner, err := o.enterRootless(ctx, logger)
	if err = o.netstack.insteadOfTUN(err, o); err != nil {
		return err
	}
	if err := keepSecrets(); err != nil {
		return err
	}
	config := hostConfig{TUN: tunName, Choice: choice, Logger: logger, Workers: o.workers, Offloads: offloads, BusyPoll: o.busyPoll, Inner: inner}
	host, err := newHost(config)
	if err != nil {
		return err
	}
	status := agent.NewTracker(o.node, version(), logger)
	source, err := o.source(choice.PublicIPs, status, logger)
	if err != nil {
		return err
	}
	defer source.Close()
	cfg := agent.Config{
		Node: o.node, Version: version(), Source: source, Host: host, Engine: o.engine, Device: tunName,
		Masquerade: o.ipMasq, RandomFully: !o.masqRandomOff, ForwardRules: o.forwardRules, Blackhole: o.blackhole, Confine: runtime.GOOS == "linux",
		KeepChecksums: kept.checksums, KeepAcks: kept.acks, NoDirect: inner != nil, NoVXLAN: !o.wireGuard.vxlan,
		SubnetFile: o.subnetFile, Socket: o.socket, Resync: time.Duration(max(o.resync, 1)) * time.Second,
		Status: status, Logger: logger,
	}
	if cfg.WireGuard, err = o.wireGuard.config(); err != nil {
		return err
	}
	if o.healthPort != 0 {
		cfg.Health = net.JoinHostPort(o.healthIP, strconv.Itoa(o.healthPort))
	}
	run, err := o.netstack.around(&cfg, config, o)
	if err != nil {
		return err
	}
	member, err := agent.New(cfg)
	if err != nil {
		return usageError{err}
	}
	logger.Info("weft agent starts", "version", version(), "host", o.node)
	err = run(ctx, member.Run)
	logger.Info("weft agent ends; what it put into the kernel stays", "err", err)
	return err
}

// chosenEngine joins --engine and --device: each device belongs to one engine.
func (o options) chosenEngine() (string, error) {
	engine, known := map[string]string{"auto": o.engine, "kernel": "kernel", "tun": "userspace", "netstack": "userspace"}[o.device]
	if !known {
		return "", usageError{fmt.Errorf("--device %q: want auto, kernel, tun or netstack", o.device)}
	}
	if o.engine != "auto" && o.engine != engine {
		return "", usageError{fmt.Errorf("--device=%s does not go with --engine=%s: leave one of them out", o.device, o.engine)}
	}
	return engine, nil
}

// kept is what --offload switches off that is the engine's own.
type kept struct{ checksums, acks bool }

// offloads is what --offload asks for.
func (o options) offloads() (offloads datapath.Offloads, keep kept, err error) {
	var checksum, acks tunnel.Switch
	switches := map[string]*tunnel.Switch{
		"tso": &offloads.TSO, "uso": &offloads.USO, "gso": &offloads.GSO, "gro": &offloads.GRO, "ring": &offloads.Ring, "checksum": &checksum, "acks": &acks,
	}
	for name, value := range o.offload {
		target, known := switches[name]
		if !known {
			return offloads, kept{}, usageError{fmt.Errorf("--offload %s=%s: want %s", name, value, strings.Join(slices.Sorted(maps.Keys(switches)), ", "))}
		}
		if *target, err = tunnel.ParseSwitch(value); err != nil {
			return offloads, kept{}, usageError{fmt.Errorf("--offload %s: %w", name, err)}
		}
	}
	return offloads, kept{checksums: checksum == tunnel.Off, acks: acks == tunnel.Off}, nil
}

// logger is what --log-format, --log-level and -v ask for.
func (o options) logger() (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(o.logLevel)); err != nil {
		return nil, usageError{fmt.Errorf("--log-level %q: want debug, info, warn or error", o.logLevel)}
	}
	if o.verbosity > 0 {
		level = slog.LevelDebug
	}
	handlerOptions := &slog.HandlerOptions{Level: level}
	switch o.logFormat {
	case "text":
		return slog.New(slog.NewTextHandler(os.Stderr, handlerOptions)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(os.Stderr, handlerOptions)), nil
	}
	return nil, usageError{fmt.Errorf("--log-format %q: want text or json", o.logFormat)}
}

// underlayRequest is what the flags say of the outer interface.
func (o options) underlayRequest() (underlay.Request, error) {
	request := underlay.Request{Ifaces: o.ifaces, IfaceRegex: o.ifaceRegex}
	for _, expr := range o.ifaceRegex {
		if _, err := regexp.Compile(expr); err != nil {
			return request, usageError{fmt.Errorf("--iface-regex %q: %w", expr, err)}
		}
	}
	for _, flag := range []struct {
		name, value string
		is4         bool
	}{{"--public-ip", o.publicIP, true}, {"--public-ipv6", o.publicIPv6, false}} {
		if flag.value == "" {
			continue
		}
		addr, err := netip.ParseAddr(flag.value)
		if err != nil || addr.Is4() != flag.is4 {
			return request, usageError{fmt.Errorf("%s %q: want an address of that family, as in 192.0.2.7 or 2001:db8::7", flag.name, flag.value)}
		}
		request.PublicIPs = append(request.PublicIPs, addr)
	}
	if o.ifaceCanReach != "" {
		addr, err := netip.ParseAddr(o.ifaceCanReach)
		if err != nil {
			return request, usageError{fmt.Errorf("--iface-can-reach %q: want an IP address", o.ifaceCanReach)}
		}
		request.CanReach = addr
	}
	return request, nil
}
