package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/weft-net/weft/control/kube"
)

// adminFlags say as whom the API server is asked.
type adminFlags struct{ kubeconfig, namespace string }

func (a *adminFlags) register(f *pflag.FlagSet) {
	f.StringVar(&a.kubeconfig, "kubeconfig-file", "", "an administrator's kubeconfig (default $KUBECONFIG, ~/.kube/config or the pod's service account)")
	f.StringVar(&a.namespace, "namespace", kube.DefaultNamespace, "namespace of guests' accounts")
}

// do calls f as administrator.
func (a *adminFlags) do(ctx context.Context, f func(context.Context, *kube.Admin) error) error {
	admin, err := kube.NewAdmin(kube.AdminConfig{Kubeconfig: a.kubeconfig, Namespace: a.namespace, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	defer admin.Close()
	return f(ctx, admin)
}

// oneName takes the one argument of a command.
func oneName(cmd *cobra.Command, args []string) error {
	if len(args) != 1 {
		return usageError{fmt.Errorf("%d arguments: want the guest's name, as in 'weft %s anna-laptop'", len(args), cmd.Name())}
	}
	if err := kube.CheckGuestName(args[0]); err != nil {
		return usageError{err}
	}
	return nil
}

func inviteCommand() *cobra.Command {
	var admin adminFlags
	var request kube.InviteRequest
	var netConfPath, output string
	var podCIDRs []string
	command := &cobra.Command{
		Use:   "invite NAME",
		Short: "Let a machine that is no Kubernetes node join, with one file",
		Long: "Let a machine that is no Kubernetes node join the pod network, and print the one file it needs:\n\n" +
			"    weft invite anna-laptop -o anna-laptop.invite     # by an administrator of the cluster\n" +
			"    weft agent --invite anna-laptop.invite            # on the laptop\n" +
			"    weft revoke anna-laptop                           # ends it, before its time\n\n" +
			"The guest gets a Node that takes no Pods, a pod CIDR like any node, and an account that may read Nodes and\n" +
			"Services and change this one Node's annotations and status. Who has the file is the guest: send it as you\n" +
			"would a password. Apply deploy/guests.yaml and deploy/admission.yaml to the cluster first.",
		Args: oneName,
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			request.Name = args[0]
			if request.TTL < kube.MinTTL || request.TTL > kube.MaxTTL {
				return usageError{fmt.Errorf("--ttl %s: want %s to %s", request.TTL, kube.MinTTL, kube.MaxTTL)}
			}
			for _, text := range podCIDRs {
				prefix, err := netip.ParsePrefix(text)
				if err != nil || prefix.Masked() != prefix {
					return usageError{fmt.Errorf("--pod-cidr %q: want a network, as in 10.244.9.0/24", text)}
				}
				request.PodCIDRs = append(request.PodCIDRs, prefix)
			}
			if netConfPath != "" {
				if request.NetConf, err = os.ReadFile(netConfPath); err != nil {
					return fmt.Errorf("--net-config-path: %w", err)
				}
			}
			return admin.do(cmd.Context(), func(ctx context.Context, admin *kube.Admin) error {
				return makeInvite(ctx, admin, request, output, cmd.OutOrStdout(), cmd.ErrOrStderr())
			})
		},
	}
	f := command.Flags()
	f.SortFlags = false
	f.DurationVar(&request.TTL, "ttl", 8*time.Hour, "how long the invite is good for")
	f.StringVarP(&output, "output", "o", "", "file to write, for its owner alone (default: standard output)")
	f.BoolVar(&request.Renew, "renew", false, "give a guest that has been invited already more time: its agent takes the new file over if it\n"+
		"is put where the first one is")
	f.StringVar(&request.APIURL, "guest-api-url", "", "URL at which the guest reaches the API server (default: the kubeconfig's)")
	f.StringSliceVar(&podCIDRs, "pod-cidr", nil, "the guest's pod CIDR, one per family, where kube-controller-manager assigns none")
	f.StringVar(&netConfPath, "net-config-path", "", "net-conf.json (default: that in the ConfigMap of weft or flannel)")
	f.StringVar(&request.Prefix, "kube-annotation-prefix", "flannel.alpha.coreos.com", "prefix of Node annotations, as the cluster's agents have it")
	f.StringVar(&request.ClusterDomain, "cluster-domain", "", "domain of Services (default: that of CoreDNS' ConfigMap, else cluster.local)")
	f.BoolVar(&request.WithoutPolicy, "without-policy", false, "invite though deploy/admission.yaml is not in force")
	admin.register(f)
	return command
}

// makeInvite makes an invite and writes its file. The file is opened first: a
// guest whose file cannot be written is not made.
func makeInvite(ctx context.Context, admin *kube.Admin, request kube.InviteRequest, output string, stdout, stderr io.Writer) (err error) {
	write := func(data []byte) error { _, err := stdout.Write(data); return err }
	if output != "" {
		file, err := os.CreateTemp(filepath.Dir(output), ".weft-invite-*") // mode 0600
		if err != nil {
			return fmt.Errorf("write invite: %w", err)
		}
		defer func() {
			if err := os.Remove(file.Name()); err != nil && !errors.Is(err, fs.ErrNotExist) {
				fmt.Fprintln(stderr, "weft:", err)
			}
		}()
		write = func(data []byte) error {
			_, err := file.Write(data)
			if err := errors.Join(err, file.Close()); err != nil {
				return err
			}
			return os.Rename(file.Name(), output)
		}
	}
	invite, notes, err := admin.Invite(ctx, request)
	if err != nil {
		return err
	}
	data, err := invite.Encode()
	if err != nil {
		return err
	}
	if err := write(data); err != nil {
		return fmt.Errorf("write invite: %w (the guest exists: 'weft invite %s --renew' makes another file)", err, request.Name)
	}
	for _, note := range notes {
		fmt.Fprintln(stderr, "weft: note:", note)
	}
	if output != "" {
		fmt.Fprintf(stderr, "%s may join until %s: weft agent --invite %s\n", invite.Node, invite.Expires.Local().Format("2006-01-02 15:04 MST"), output)
	}
	return nil
}

func invitesCommand() *cobra.Command {
	var admin adminFlags
	var format format
	command := &cobra.Command{
		Use:   "invites",
		Short: "List the guests that have been invited",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := format.check(); err != nil {
				return err
			}
			return admin.do(cmd.Context(), func(ctx context.Context, admin *kube.Admin) error {
				guests, err := admin.Guests(ctx)
				if err != nil {
					return err
				}
				return format.print(cmd.OutOrStdout(), guests, func(w io.Writer) error { return printGuests(w, guests, time.Now()) })
			})
		},
	}
	format.register(command.Flags())
	admin.register(command.Flags())
	return command
}

// printGuests writes one line per guest.
func printGuests(w io.Writer, guests []kube.Guest, now time.Time) error {
	if len(guests) == 0 {
		_, err := fmt.Fprintln(w, "no guests; 'weft invite NAME' makes one")
		return err
	}
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "NAME\tPODCIDR\tEXPIRES\tJOINED\tRENEWED\tMACHINE")
	for _, g := range guests {
		expires, joined, renewed := "unreadable", "no", "never"
		if left := g.Expires.Sub(now).Truncate(time.Second); g.Expires.IsZero() {
		} else if left > 0 {
			expires = "in " + left.String()
		} else {
			expires = (-left).String() + " ago"
		}
		if g.Joined {
			joined = "yes"
		}
		if !g.Renewed.IsZero() {
			renewed = now.Sub(g.Renewed).Truncate(time.Second).String() + " ago"
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\n", g.Name, strings.Join(g.PodCIDRs, ","), expires, joined, renewed, g.Holder)
	}
	if err := table.Flush(); err != nil {
		return fmt.Errorf("print guests: %w", err)
	}
	return nil
}
