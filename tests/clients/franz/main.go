// franz-go against a broker of the Kafka protocol: go run . HOST:PORT
//
// Prints one line for each thing observed, without names that differ between runs, so that the lines of
// two brokers can be compared. Ends with 1 at the first failure.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

const records = 100

func must(err error) {
	if err != nil {
		fmt.Println("FAILED", err)
		os.Exit(1)
	}
}

func code(err error) string {
	var known *kerr.Error
	if errors.As(err, &known) {
		return known.Message
	}
	return fmt.Sprint(err)
}

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	seed := os.Args[1]
	name := fmt.Sprintf("franz-%d", time.Now().UnixNano())
	cl, err := kgo.NewClient(kgo.SeedBrokers(seed), kgo.TransactionalID(name), kgo.DefaultProduceTopic(name))
	must(err)
	defer cl.Close()
	adm := kadm.NewClient(cl)
	_, err = adm.CreateTopic(ctx, 2, 1, nil, name)
	must(err)
	_, err = adm.CreateTopic(ctx, 2, 1, nil, name)
	fmt.Println("created again:", code(err))

	must(cl.BeginTransaction())
	for i := 0; i < records; i++ {
		must(cl.ProduceSync(ctx, kgo.KeyStringRecord(fmt.Sprint("k", i), fmt.Sprint("in", i))).FirstErr())
	}
	must(cl.EndTransaction(ctx, kgo.TryCommit))
	must(cl.BeginTransaction())
	must(cl.ProduceSync(ctx, kgo.KeyStringRecord("k0", "out")).FirstErr())
	must(cl.EndTransaction(ctx, kgo.TryAbort))
	// Apache Kafka writes the markers after its answer.
	for state := ""; state != "CompleteAbort"; time.Sleep(20 * time.Millisecond) {
		described, err := adm.DescribeTransactions(ctx, name)
		must(err)
		state = described[name].State
	}
	listed, err := adm.ListTransactions(ctx, nil, []string{"CompleteAbort"})
	must(err)
	fmt.Println("listed:", listed[name].State)

	var ends int64
	offsets, err := adm.ListEndOffsets(ctx, name)
	must(err)
	offsets.Each(func(end kadm.ListedOffset) { ends += end.Offset })
	// Markers: of the first transaction in each of the two partitions, of the second one in its own.
	fmt.Println("ends:", len(offsets[name]), "partitions", ends, "offsets")

	consume(ctx, adm, seed, name)
	session(ctx, adm, seed, name)
	deleted, err := adm.DeleteGroups(ctx, name)
	must(err)
	fmt.Println("group deleted:", code(deleted[name].Err))
	_, err = adm.DeleteTopics(ctx, name)
	must(err)
}

// consume reads in a group, cooperatively, and commits.
func consume(ctx context.Context, adm *kadm.Client, seed, name string) {
	c, err := kgo.NewClient(kgo.SeedBrokers(seed), kgo.ConsumerGroup(name), kgo.ConsumeTopics(name),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.DisableAutoCommit())
	must(err)
	defer c.Close()
	for n := 0; n < records; {
		fetched := c.PollFetches(ctx)
		for _, e := range fetched.Errors() {
			must(e.Err)
		}
		fetched.EachRecord(func(r *kgo.Record) {
			if string(r.Value) == "out" {
				must(errors.New("aborted record seen"))
			}
			n++
		})
	}
	must(c.CommitUncommittedOffsets(ctx))
	described, err := adm.DescribeGroups(ctx, name)
	must(err)
	group := described[name]
	fmt.Println("group:", group.State, len(group.Members), group.Protocol)
	deleted, err := adm.DeleteGroups(ctx, name)
	must(err)
	fmt.Println("deleted in use:", code(deleted[name].Err))
}

// session consumes and produces in one transaction, as franz-go does it.
func session(ctx context.Context, adm *kadm.Client, seed, name string) {
	plain, err := kgo.NewClient(kgo.SeedBrokers(seed), kgo.DefaultProduceTopic(name))
	must(err)
	must(plain.ProduceSync(ctx, kgo.KeyStringRecord("k0", "last")).FirstErr())
	plain.Close()
	s, err := kgo.NewGroupTransactSession(kgo.SeedBrokers(seed), kgo.TransactionalID(name+"-session"),
		kgo.ConsumerGroup(name), kgo.ConsumeTopics(name), kgo.DefaultProduceTopic(name+"-out"),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.RequireStableFetchOffsets())
	must(err)
	defer s.Close()
	_, err = adm.CreateTopic(ctx, 1, 1, nil, name+"-out")
	must(err)
	for n := 0; n == 0; {
		fetched := s.PollFetches(ctx)
		must(fetched.Err())
		must(s.Begin())
		fetched.EachRecord(func(r *kgo.Record) {
			fmt.Println("in the session:", string(r.Value))
			must(s.ProduceSync(ctx, kgo.StringRecord("done "+string(r.Value))).FirstErr())
			n++
		})
		committed, err := s.End(ctx, kgo.TryCommit)
		must(err)
		if n > 0 {
			fmt.Println("committed:", committed)
		}
	}
	lags, err := adm.Lag(ctx, name)
	must(err)
	// Behind the last records stand markers and what was aborted; a position may be before or after those.
	fmt.Println("small lag:", lags[name].Lag.Total() <= 5)
	_, err = adm.DeleteTopics(ctx, name+"-out")
	must(err)
}
