// Command weft-cni is the CNI plugin of a node: it puts the lease that the
// agent wrote to subnet.env into the configuration of a delegate, by default
// bridge with host-local, and calls that. It may be installed as "flannel" and
// takes the same configuration. It must never touch the network itself, and
// never forget an attachment that its delegate still holds.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/weft-net/weft/control/state"
)

// plugin answers the verbs of CNI. Errors are types.Error where the code says
// something to the runtime.
type plugin struct {
	exec   invoke.Exec
	stdout io.Writer
}

// request is what one call is about; the fields are named as in skel.CmdArgs.
type request struct {
	ContainerID, Netns, IfName, Args, Path string
	StdinData                              []byte
}

// add saves the delegate's configuration, calls the delegate, and passes its
// result on as it is. After a failure the file stays: DEL will come.
func (p plugin) add(args request) error {
	c, err := parseConfig(args.StdinData)
	if err != nil {
		return err
	}
	d, err := c.prepare(types.ErrTryAgainLater)
	if err != nil {
		return err
	}
	if err := c.store().save(c.attachment(args), d); err != nil {
		return types.NewError(types.ErrIOFailure, "save attachment: "+err.Error(), "")
	}
	result, err := p.call("ADD", args, d)
	if err != nil {
		return err
	}
	if !json.Valid(result) {
		return types.NewError(types.ErrDecodingFailure, fmt.Sprintf("%s: its result is not JSON: %.64q", d.plugin, result), "")
	}
	_, err = p.stdout.Write(result)
	return err
}

// del undoes what ADD did, by the configuration saved then. The file goes when
// the delegate has succeeded, so that a failed DEL can be tried again.
func (p plugin) del(args request) error {
	c, err := parseConfig(args.StdinData)
	if err != nil {
		return err
	}
	found, err := c.store().load(c.attachment(args))
	if errors.Is(err, fs.ErrNotExist) {
		// Nothing was added, or it was deleted before; a save may have been killed.
		return ioFailure("clean up", c.store().sweep(c.attachment(args)))
	}
	if err != nil {
		return ioFailure("load attachment", err)
	}
	return p.release(c, args, found)
}

// release has the delegate delete an attachment, and then forgets it.
func (p plugin) release(c config, args request, found saved) error {
	if found.corrupt != nil {
		// What is lost is made again: the delegate finds its own by the names.
		d, err := c.prepare(types.ErrTryAgainLater)
		if err != nil {
			return types.NewError(types.ErrTryAgainLater, "the saved attachment is unreadable: "+found.corrupt.Error(), "and cannot be made again: "+err.Error())
		}
		found.delegated = d
	}
	if _, err := p.call("DEL", args, found.delegated); err != nil {
		return err
	}
	return ioFailure("forget attachment", c.store().remove(found))
}

// check has the delegate check the attachment as it was added.
func (p plugin) check(args request) error {
	c, err := parseConfig(args.StdinData)
	if err != nil {
		return err
	}
	if c.prevResult == nil {
		return badConfig("prevResult", "is missing, CHECK needs it")
	}
	found, err := c.store().load(c.attachment(args))
	if err == nil {
		err = found.corrupt
	}
	if errors.Is(err, fs.ErrNotExist) {
		return types.NewError(types.ErrUnknownContainer, fmt.Sprintf("container %s has no interface %s on network %s", args.ContainerID, args.IfName, c.name), "")
	}
	if err != nil {
		return ioFailure("load attachment", err)
	}
	d, err := found.with("prevResult", c.prevResult)
	if err != nil {
		return err
	}
	_, err = p.call("CHECK", args, d)
	return err
}

// status says whether an ADD could work now.
func (p plugin) status(args request) error {
	c, err := parseConfig(args.StdinData)
	if err != nil {
		return err
	}
	d, err := c.prepare(types.ErrPluginNotAvailable)
	if err != nil {
		return err
	}
	_, err = p.call("STATUS", args, d)
	return err
}

// gc deletes every attachment of the network that the runtime does not know
// any more, each on its own, and has the delegate do the same with its own.
func (p plugin) gc(args request) error {
	c, err := parseConfig(args.StdinData)
	if err != nil {
		return err
	}
	if c.valid == nil {
		return badConfig(keyValid, "is missing, GC needs it")
	}
	all, err := c.store().list(c.name)
	if err != nil {
		return ioFailure("list attachments", err)
	}
	var errs []error
	if err := p.delegateGC(c, args); err != nil {
		errs = append(errs, err)
	}
	for _, found := range all {
		if c.isValid(found) {
			continue
		}
		stale := request{ContainerID: found.container, IfName: found.ifName, Path: args.Path}
		if err := p.release(c, stale, found); err != nil {
			errs = append(errs, fmt.Errorf("container %s, interface %s: %w", found.container, found.ifName, err))
		}
	}
	if len(errs) > 0 {
		return types.NewError(types.ErrInternal, errors.Join(errs...).Error(), "")
	}
	return nil
}

func (p plugin) delegateGC(c config, args request) error {
	d, err := c.prepare(types.ErrTryAgainLater)
	if err != nil {
		return err
	}
	for _, key := range []string{keyValid, keyValidOld} {
		if d, err = d.with(key, *c.valid); err != nil {
			return err
		}
	}
	_, err = p.call("GC", args, d)
	return err
}

// isValid reports whether the runtime named the attachment. Of flannel's files
// only the container is known.
func (c config) isValid(found saved) bool {
	for _, valid := range *c.valid {
		if valid.ContainerID != found.container {
			continue
		}
		if valid.IfName == found.ifName || filepath.Base(found.path) == found.container {
			return true
		}
	}
	return false
}

func (c config) store() store { return store{dir: c.dataDir} }

func (c config) attachment(args request) attachment {
	return attachment{network: c.name, container: args.ContainerID, ifName: args.IfName}
}

// prepare makes the delegate's configuration of the lease in subnet.env.
// Without one the answer has the code notReady.
func (c config) prepare(notReady uint) (delegated, error) {
	env, err := state.ReadSubnetEnv(c.subnetFile)
	if err != nil {
		return delegated{}, types.NewError(notReady, "this node has no lease yet: "+err.Error(), "the agent writes the file: its log and weft status say what it waits for")
	}
	return c.compose(env)
}

// call runs the delegate. Its error keeps its code and says whose it is.
func (p plugin) call(verb string, args request, d delegated) ([]byte, error) {
	path, err := p.exec.FindInPath(d.plugin, filepath.SplitList(args.Path))
	if err != nil {
		return nil, types.NewError(types.ErrPluginNotAvailable, "delegate: "+err.Error(), "install the plugin into a directory of CNI_PATH")
	}
	delegate := &invoke.Args{
		Command: verb, ContainerID: args.ContainerID, NetNS: args.Netns, IfName: args.IfName,
		PluginArgsStr: args.Args, Path: args.Path,
	}
	result, err := p.exec.ExecPlugin(context.Background(), path, d.stdin, delegate.AsEnv())
	if err == nil {
		return result, nil
	}
	var answer *types.Error
	if errors.As(err, &answer) {
		if answer.Code == 0 { // it gave none
			answer.Code = types.ErrInternal
		}
		return nil, types.NewError(answer.Code, d.plugin+": "+answer.Msg, answer.Details)
	}
	return nil, fmt.Errorf("%s: %w", d.plugin, err)
}

// ioFailure names what could not be done with a file; nil stays nil.
func ioFailure(verb string, err error) error {
	if err == nil {
		return nil
	}
	return types.NewError(types.ErrIOFailure, verb+": "+err.Error(), "")
}
