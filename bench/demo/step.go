package demo

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
)

// openFile is where Open says what Step needs. It is seen from elsewhere as
// /proc/PID/root/run/weft-lab.json.
const openFile = "/run/weft-lab.json"

// openLab is the content of openFile: this process, and which of its file
// descriptors are the namespaces of a place.
type openLab struct {
	PID    int // as seen inside
	Places map[string]doors
}

// doors are file descriptors of namespaces.
type doors struct{ Net, UTS, Mount int }

// Place is where Step goes.
type Place struct {
	// Lab is the id, out here, of the process that keeps the lab; 0: the only
	// lab there is.
	Lab int
	// Name is HOST or HOST/POD.
	Name string
}

var errNoOpenLab = errors.New("no lab is open here; open one with: weft-lab demo --keep")

// Open lets other processes of this user step into hosts and pods, by Step,
// for as long as the demo is up.
func (d *Demo) Open() error {
	open := openLab{PID: os.Getpid(), Places: map[string]doors{}}
	add := func(name string, do func(func() error) error) error {
		return do(func() (err error) {
			open.Places[name], err = d.doors()
			return err
		})
	}
	for _, m := range d.members {
		if err := add(m.Name(), m.Do); err != nil {
			return fmt.Errorf("open %s to others: %w", m.Name(), err)
		}
		for _, pod := range m.pods {
			if err := add(pod.Name, pod.ns.Do); err != nil {
				return fmt.Errorf("open %s to others: %w", pod.Name, err)
			}
		}
	}
	text, err := json.Marshal(open)
	if err != nil {
		return fmt.Errorf("open lab to others: %w", err)
	}
	if err := os.WriteFile(openFile, text, 0o600); err != nil {
		return fmt.Errorf("open lab to others: %w", err)
	}
	return nil
}

// doors opens the namespaces of the calling thread; Close closes them.
func (d *Demo) doors() (opened doors, err error) {
	for kind, fd := range map[string]*int{"net": &opened.Net, "uts": &opened.UTS, "mnt": &opened.Mount} {
		file, err := os.Open("/proc/thread-self/ns/" + kind)
		if err != nil {
			return doors{}, err
		}
		d.doorFiles = append(d.doorFiles, file)
		*fd = int(file.Fd())
	}
	return opened, nil
}
