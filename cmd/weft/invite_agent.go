package main

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/pflag"

	"github.com/weft-net/weft/control/kube"
)

// invited is the part of the agent's options that a guest has.
type invited struct {
	inviteFile string
	guest      *kube.Invite // what the file holds; nil: this host is no guest
}

func (o *options) registerInvite(f *pflag.FlagSet) {
	f.StringVar(&o.inviteFile, "invite", "", "join as a guest, with the file that an administrator's 'weft invite' made:\n"+
		"all that is needed to lease from Kubernetes is in it")
}

// applyInvite reads the invite, which stands for the flags of Kubernetes.
func (o *options) applyInvite() error {
	if o.inviteFile == "" {
		return nil
	}
	if o.kubeconfig != "" || o.kubeAPI != "" {
		return usageError{errors.New("--invite does not go with --kubeconfig-file or --kube-api-url: it says itself where the API server is")}
	}
	invite, err := kube.LoadInvite(o.inviteFile)
	if err != nil {
		return err
	}
	o.guest, o.kube, o.node = &invite, true, invite.Node
	return nil
}

// machine names this agent among those that may come with a copy of one invite:
// the same machine with the same socket is the same agent, started again. The
// machine's identifier is not told to the cluster as it is.
func (o *options) machine() string {
	name, err := os.Hostname()
	if err != nil {
		name = "unknown"
	}
	id, _ := os.ReadFile("/etc/machine-id") // Linux; elsewhere the host's name has to do
	sum := sha256.Sum256(fmt.Appendf(nil, "weft machine\x00%s\x00%s\x00%s", id, name, o.socket))
	return name + "/" + hex.EncodeToString(sum[:4])
}
