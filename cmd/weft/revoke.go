package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/weft-net/weft/control/kube"
)

func revokeCommand() *cobra.Command {
	var admin adminFlags
	var expired bool
	command := &cobra.Command{
		Use:   "revoke NAME | --expired",
		Short: "End an invite: all peers drop the guest, and its file is good for nothing",
		Long: "End an invite, before its time or after. The guest's Node goes first, so that peers drop it at once and its\n" +
			"token is refused within seconds, then its account and rights. Nodes that are no guests are never touched.\n\n" +
			"--expired ends every invite whose time is over; deploy/guests.yaml does that every five minutes.",
		Args: func(cmd *cobra.Command, args []string) error {
			if expired && len(args) > 0 {
				return usageError{errors.New("--expired takes no name")}
			}
			if expired {
				return nil
			}
			return oneName(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return admin.do(cmd.Context(), func(ctx context.Context, admin *kube.Admin) error {
				if expired {
					revoked, err := admin.RevokeExpired(ctx, time.Now())
					for _, name := range revoked {
						fmt.Fprintln(cmd.OutOrStdout(), "revoked", name)
					}
					return err
				}
				deleted, err := admin.Revoke(ctx, args[0])
				for _, object := range deleted {
					fmt.Fprintln(cmd.OutOrStdout(), "deleted", object)
				}
				if err == nil && len(deleted) == 0 {
					fmt.Fprintln(cmd.OutOrStdout(), "there is no guest", args[0]+": nothing to do")
				}
				return err
			})
		},
	}
	command.Flags().BoolVar(&expired, "expired", false, "every invite whose time is over")
	admin.register(command.Flags())
	return command
}
