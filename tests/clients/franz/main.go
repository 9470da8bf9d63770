package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

func must(err error) {
	if err != nil {
		fmt.Println("FAILED", err)
		os.Exit(1)
	}
}

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	seed := os.Args[1]
	topic := fmt.Sprintf("franz-%d", time.Now().UnixNano())
	cl, err := kgo.NewClient(kgo.SeedBrokers(seed), kgo.TransactionalID(topic), kgo.DefaultProduceTopic(topic))
	must(err)
	adm := kadm.NewClient(cl)
	_, err = adm.CreateTopic(ctx, 2, 1, nil, topic)
	must(err)
	must(cl.BeginTransaction())
	for i := 0; i < 100; i++ {
		must(cl.ProduceSync(ctx, kgo.KeyStringRecord(fmt.Sprint("k", i), fmt.Sprint("in", i))).FirstErr())
	}
	must(cl.EndTransaction(ctx, kgo.TryCommit))
	must(cl.BeginTransaction())
	must(cl.ProduceSync(ctx, kgo.StringRecord("out")).FirstErr())
	must(cl.EndTransaction(ctx, kgo.TryAbort))
	c, err := kgo.NewClient(kgo.SeedBrokers(seed), kgo.ConsumerGroup(topic), kgo.ConsumeTopics(topic),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	must(err)
	n := 0
	for n < 100 {
		f := c.PollFetches(ctx)
		for _, e := range f.Errors() {
			must(e.Err)
		}
		f.EachRecord(func(r *kgo.Record) {
			if string(r.Value) == "out" {
				must(fmt.Errorf("aborted record seen"))
			}
			n++
		})
	}
	must(c.CommitUncommittedOffsets(ctx))
	d, err := adm.DescribeGroups(ctx, topic)
	must(err)
	fmt.Println(d[topic].State, len(d[topic].Members), d[topic].Protocol)
	lag, err := adm.Lag(ctx, topic)
	must(err)
	fmt.Println("lag", lag[topic].Lag.Total())
	o, err := adm.ListEndOffsets(ctx, topic)
	must(err)
	fmt.Println("ends", len(o[topic]))
	c.Close()
	cl.Close()
	fmt.Println("franz-go ok")
}
