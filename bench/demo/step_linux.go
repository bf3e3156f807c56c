package demo

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/bench/lab"
)

// kinds are the namespaces that make a place, as in /proc/PID/ns.
var kinds = []string{"net", "uts", "mnt"}

// publish binds a place's namespaces to files in the lab's own directory.
func publish(ns *lab.Namespace, name string) error {
	for _, kind := range kinds {
		var file *os.File
		err := ns.Do(func() (err error) {
			file, err = os.Open("/proc/thread-self/ns/" + kind)
			return err
		})
		if err == nil {
			err = bind(file, filepath.Join(labDir, name, kind))
		}
		if err != nil {
			return fmt.Errorf("open %s to others: %w", name, err)
		}
	}
	return nil
}

func bind(file *os.File, path string) error {
	defer file.Close()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(path, nil, 0o444); err != nil {
		return err
	}
	if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", file.Fd()), path, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s: %w", path, err)
	}
	return nil
}

// Step becomes a program in a place of a lab that another process has opened.
// extraPath is searched for programs first. It returns only if that fails.
func Step(place Place, extraPath, program string, args ...string) error {
	if err := place.check(); err != nil {
		return err
	}
	pid, err := findLab(place.Lab)
	if err != nil {
		return err
	}
	root := fmt.Sprintf("/proc/%d/root%s/%s", pid, labDir, place.Name)
	if _, err := os.Stat(filepath.Join(root, "net")); err != nil {
		return fmt.Errorf("step into %s: there are %s", place.Name, strings.Join(places(pid), ", "))
	}
	nsenter, err := exec.LookPath("nsenter")
	if err != nil {
		return fmt.Errorf("step into %s: nsenter is missing (it is in util-linux): %w", place.Name, err)
	}
	argv := []string{"nsenter"}
	user := fmt.Sprintf("/proc/%d/ns/user", pid)
	if same, err := sameFile(user, "/proc/self/ns/user"); err != nil {
		return fmt.Errorf("step into %s: %w", place.Name, err)
	} else if !same {
		argv = append(argv, "--user="+user, "--preserve-credentials")
	}
	argv = append(argv, fmt.Sprintf("--pid=/proc/%d/ns/pid", pid),
		"--net="+root+"/net", "--uts="+root+"/uts", "--mount="+root+"/mnt", "--", program)
	if err := os.Setenv("PATH", extraPath+":"+os.Getenv("PATH")); err != nil {
		return fmt.Errorf("step into %s: %w", place.Name, err)
	}
	return fmt.Errorf("run %s: %w", nsenter, unix.Exec(nsenter, append(argv, args...), os.Environ()))
}

// findLab is the process with the lowest id of the lab that is open, of the
// one that pid belongs to unless pid is 0.
func findLab(pid int) (int, error) {
	pattern := "/proc/[0-9]*/root" + labDir
	if pid != 0 {
		pattern = fmt.Sprintf("/proc/%d/root%s", pid, labDir)
	}
	dirs, err := filepath.Glob(pattern)
	if err != nil {
		return 0, fmt.Errorf("look for labs: %w", err)
	}
	found := map[string]int{} // by mount of labDir
	for _, dir := range dirs {
		info, err := os.Stat(dir)
		if err != nil {
			continue // the process has just ended
		}
		candidate, err := strconv.Atoi(strings.Split(dir, "/")[2])
		if err != nil {
			continue
		}
		id := identity(info)
		if known, ok := found[id]; !ok || candidate < known {
			found[id] = candidate
		}
	}
	var pids []int
	for _, pid := range found {
		pids = append(pids, pid)
	}
	slices.Sort(pids)
	switch len(pids) {
	case 0:
		return 0, errNoOpenLab
	case 1:
		return pids[0], nil
	}
	return 0, fmt.Errorf("several labs are open: choose one with --lab, of the processes %s", strings.Trim(fmt.Sprint(pids), "[]"))
}

func identity(info os.FileInfo) string {
	stat, ok := info.Sys().(*unix.Stat_t)
	if !ok {
		return info.Name()
	}
	return fmt.Sprintf("%d:%d", stat.Dev, stat.Ino)
}

func sameFile(a, b string) (bool, error) {
	infoA, errA := os.Stat(a)
	infoB, errB := os.Stat(b)
	if err := errors.Join(errA, errB); err != nil {
		return false, err
	}
	return os.SameFile(infoA, infoB), nil
}

// places lists the names Step takes.
func places(pid int) (names []string) {
	root := fmt.Sprintf("/proc/%d/root%s", pid, labDir)
	for _, pattern := range []string{"*/net", "*/*/net"} {
		paths, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			continue
		}
		for _, path := range paths {
			names = append(names, strings.TrimPrefix(filepath.Dir(path), root+"/"))
		}
	}
	slices.Sort(names)
	return names
}
