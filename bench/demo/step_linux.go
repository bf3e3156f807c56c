package demo

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Step becomes a program in a place of a lab that another process has opened.
// extraPath is searched for programs first. It returns only if that fails.
func Step(place Place, extraPath, program string, args ...string) error {
	return fmt.Errorf("step into %s: %w", place.Name, step(place, extraPath, append([]string{program}, args...)))
}

// step returns only if it fails.
func step(place Place, extraPath string, command []string) error {
	pid, open, err := findLab(place.Lab)
	if err != nil {
		return err
	}
	doors, ok := open.Places[place.Name]
	if !ok {
		return fmt.Errorf("no such place; there are %s", strings.Join(slices.Sorted(maps.Keys(open.Places)), ", "))
	}
	nsenter, err := exec.LookPath("nsenter")
	if err != nil {
		return fmt.Errorf("%w (it is in the package util-linux)", err)
	}
	argv := []string{"nsenter"}
	user := fmt.Sprintf("/proc/%d/ns/user", pid)
	same, err := sameFile(user, "/proc/self/ns/user")
	if err != nil {
		return err
	}
	if !same { // entering one's own is refused
		argv = append(argv, "--user="+user)
		if os.Geteuid() != 0 { // the lab's user already, and may not say so again
			argv = append(argv, "--preserve-credentials")
		}
	}
	fd := func(n int) string { return fmt.Sprintf("/proc/%d/fd/%d", pid, n) }
	argv = append(argv, fmt.Sprintf("--pid=/proc/%d/ns/pid", pid),
		"--net="+fd(doors.Net), "--uts="+fd(doors.UTS), "--mount="+fd(doors.Mount), "--")
	if err := os.Setenv("PATH", extraPath+":"+os.Getenv("PATH")); err != nil {
		return err
	}
	return fmt.Errorf("run %s: %w", nsenter, unix.Exec(nsenter, append(argv, command...), os.Environ()))
}

// findLab finds the process that keeps a lab open: the one with the given id,
// or if that is 0 the only one.
func findLab(want int) (pid int, open openLab, err error) {
	pattern := "/proc/[0-9]*/root" + openFile
	if want != 0 {
		pattern = fmt.Sprintf("/proc/%d/root%s", want, openFile)
	}
	paths, err := filepath.Glob(pattern)
	if err != nil {
		return 0, openLab{}, err
	}
	found := map[int]openLab{}
	for _, path := range paths {
		pid, err := strconv.Atoi(strings.Split(path, "/")[2])
		if err != nil {
			continue
		}
		// Others of the lab see the same file; some have just ended.
		var candidate openLab
		text, err := os.ReadFile(path)
		if err == nil && json.Unmarshal(text, &candidate) == nil && innerPID(pid) == candidate.PID {
			found[pid] = candidate
		}
	}
	pids := slices.Sorted(maps.Keys(found))
	switch len(pids) {
	case 0:
		return 0, openLab{}, errNoOpenLab
	case 1:
		return pids[0], found[pids[0]], nil
	}
	return 0, openLab{}, fmt.Errorf("several labs are open: choose one with --lab, of %s", strings.Trim(fmt.Sprint(pids), "[]"))
}

// innerPID is the id of a process in its own pid namespace; 0 if unknown.
func innerPID(pid int) int {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		if ids, ok := strings.CutPrefix(line, "NSpid:"); ok {
			fields := strings.Fields(ids)
			inner, err := strconv.Atoi(fields[len(fields)-1])
			if err != nil {
				return 0
			}
			return inner
		}
	}
	return 0
}

func sameFile(a, b string) (bool, error) {
	infoA, errA := os.Stat(a)
	infoB, errB := os.Stat(b)
	if err := errors.Join(errA, errB); err != nil {
		return false, err
	}
	return os.SameFile(infoA, infoB), nil
}
