//! The cheapest set of new nodes that gives a service what it lacks: an exact bounded knapsack cover.
//!
//! `min Σ pᵢ·nᵢ + shortage·max(0, need − Σ wᵢ·nᵢ)` over whole `0 ≤ nᵢ ≤ quotaᵢ` with `least ≤ Σ nᵢ ≤ most`; an infinite
//! shortage price asks for a full cover.
//!
//! Branch and bound in the order of price per weight: with the flavors before `i` fixed, what is still needed costs at
//! least its weight at the price per weight of flavor `i` (the relaxation in which the rest is divisible), and counts
//! are tried from the largest useful one down, so the first descent is the greedy cover and the bound of a smaller
//! count only rises. A flavor that another one dominates (no dearer, no weaker, at least as many allowed as could be
//! needed) is left out; that leaves the few worth having.
//!
//! Invariants: exact, so that a larger need never costs less; the order of the items does not matter beyond ties.
//! Left out: time. What is needed when, and what a shortage costs meanwhile, is for the caller (`demand`, `bridge`).

/// A flavor that may be ordered.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Item {
    /// What a node gives, positive.
    pub(crate) weight: f64,
    /// What it costs.
    pub(crate) price: f64,
    /// Nodes at most.
    pub(crate) most: u32,
}

/// What the new nodes must give.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Need {
    /// Weight in all; not positive when only `least` binds.
    pub(crate) weight: f64,
    /// Nodes at least.
    pub(crate) least: u32,
    /// Nodes at most.
    pub(crate) most: u32,
    /// Price of a unit of weight that is not given; finite only where `least` is 0.
    pub(crate) shortage: f64,
}

/// Price and counts, in the order of `items`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Chosen {
    pub(crate) price: f64,
    pub(crate) nodes: u32,
    pub(crate) counts: Vec<u32>,
}

impl Chosen {
    /// Cheaper, then fewer nodes.
    pub(crate) fn comes_before(&self, other: &Chosen) -> bool {
        let cheaper = self.price < other.price - 1e-12;
        cheaper || ((self.price - other.price).abs() <= 1e-12 && self.nodes < other.nodes)
    }
}

/// The cheapest cover; `None` when there is none.
pub(crate) fn cheapest(items: &[Item], need: Need) -> Option<Chosen> {
    let useful = |i: &usize| items[*i].weight > 0.0 && items[*i].most > 0;
    let mut order: Vec<usize> = (0..items.len()).filter(useful).collect();
    let dominated = |&b: &usize, order: &[usize]| {
        order.iter().any(|&a| {
            let (x, y) = (items[a], items[b]);
            let better = x.price <= y.price && x.weight >= y.weight;
            let enough = x.most >= need.most || f64::from(x.most) * x.weight >= need.weight.max(0.0) + y.weight;
            let strictly = x.price < y.price || x.weight > y.weight || a < b;
            a != b && better && strictly && enough && x.most >= need.least.saturating_add(1).min(need.most)
        })
    };
    // A dominated flavor may itself be needed for `least`; the dominating one has room for that too.
    let kept: Vec<usize> = order.iter().copied().filter(|b| !dominated(b, &order)).collect();
    order = kept;
    order.sort_by(|&a, &b| {
        let ratio = |i: usize| items[i].price / items[i].weight;
        ratio(a).total_cmp(&ratio(b)).then(items[b].weight.total_cmp(&items[a].weight)).then(a.cmp(&b))
    });
    let widest = |from: usize| order[from..].iter().map(|&i| items[i].weight).fold(0.0, f64::max);
    let mut by_price = order.clone();
    by_price.sort_by(|&a, &b| items[a].price.total_cmp(&items[b].price).then(a.cmp(&b)));
    let mut search = Search {
        items,
        widest: (0..order.len()).map(widest).collect(),
        by_price,
        order: &order,
        need,
        counts: vec![0; items.len()],
        best: None,
    };
    search.descend(0, need.weight, 0.0, 0);
    search.best
}

struct Search<'a> {
    items: &'a [Item],
    /// Items by price per weight.
    order: &'a [usize],
    /// Largest weight among `order[k..]`.
    widest: Vec<f64>,
    by_price: Vec<usize>,
    need: Need,
    counts: Vec<u32>,
    best: Option<Chosen>,
}

impl Search<'_> {
    fn descend(&mut self, k: usize, missing: f64, price: f64, nodes: u32) {
        if missing <= 0.0 {
            self.leaf(price, nodes);
            return;
        }
        if self.need.shortage.is_finite() {
            self.leaf(price + missing * self.need.shortage, nodes);
        }
        let Some(&i) = self.order.get(k) else { return };
        let item = self.items[i];
        // Even the widest nodes would be too many.
        let whole = self.need.shortage.is_infinite();
        if whole && f64::from(nodes) + missing / self.widest[k] > f64::from(self.need.most) + 1e-9 {
            return;
        }
        let useful = (missing / item.weight).ceil().min(f64::from(u32::MAX)) as u32;
        let next_ratio = self.order.get(k + 1).map_or(f64::INFINITY, |&j| self.items[j].price / self.items[j].weight);
        for count in (0..=useful.min(item.most).min(self.need.most - nodes)).rev() {
            let rest = missing - f64::from(count) * item.weight;
            let spent = price + f64::from(count) * item.price;
            let bound = if rest > 0.0 { spent + rest * next_ratio.min(self.need.shortage) } else { spent };
            if self.best.as_ref().is_some_and(|b| bound > b.price + 1e-12) || bound.is_infinite() {
                // Fewer of this one means more of dearer ones, unless it is itself dearer than the shortage.
                if rest > 0.0 && item.price <= item.weight * self.need.shortage { break } else { continue }
            }
            self.counts[i] = count;
            self.descend(k + 1, rest, spent, nodes + count);
        }
        self.counts[i] = 0;
    }

    /// A set that gives the weight, filled up with the cheapest nodes to as many as must be.
    fn leaf(&mut self, price: f64, nodes: u32) {
        let mut found = Chosen { price, nodes, counts: self.counts.clone() };
        for &i in &self.by_price {
            let more = (self.items[i].most - found.counts[i]).min(self.need.least.saturating_sub(found.nodes));
            found.counts[i] += more;
            found.nodes += more;
            found.price += f64::from(more) * self.items[i].price;
        }
        let valid = found.nodes >= self.need.least && found.nodes <= self.need.most;
        if valid && self.best.as_ref().is_none_or(|b| found.comes_before(b)) {
            self.best = Some(found);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn item(weight: f64, price: f64, most: u32) -> Item {
        Item { weight, price, most }
    }

    #[test]
    fn mixes_three_kinds_where_that_is_cheapest() {
        let items = [item(10.0, 1.0, 9), item(4.0, 0.45, 9), item(1.0, 0.2, 9)];
        let chosen =
            cheapest(&items, Need { weight: 25.0, least: 1, most: 99, shortage: f64::INFINITY }).expect("exists");
        assert_eq!(chosen.counts, [2, 1, 1]);
        assert_eq!(cheapest(&items, Need { weight: 200.0, least: 1, most: 99, shortage: f64::INFINITY }), None);
        let few = cheapest(&items, Need { weight: 25.0, least: 1, most: 3, shortage: f64::INFINITY }).expect("exists");
        assert_eq!(few.counts, [3, 0, 0], "not more than three nodes");
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 1_000, ..ProptestConfig::default() })]

        #[test]
        fn no_other_set_is_cheaper(
            raw in prop::collection::vec((1u32..9, 1u32..9, 0u32..5), 1..4), need in 0u32..40, least in 0u32..4, extra in 0u32..8,
            priced in 0u32..12
        ) {
            let items: Vec<Item> = raw.iter().map(|&(w, p, q)| item(f64::from(w), f64::from(p), q)).collect();
            let least = if priced > 0 { 0 } else { least };
            let shortage = if priced == 0 { f64::INFINITY } else { f64::from(priced) * 0.25 };
            let need = Need { weight: f64::from(need), least, most: least + extra, shortage };
            let mut best: Option<f64> = None;
            let q = |i: usize| items.get(i).map_or(0, |x| x.most);
            for a in 0..=q(0) { for b in 0..=q(1) { for c in 0..=q(2) {
                let counts = [a, b, c];
                let sum = |f: fn(&Item) -> f64| items.iter().zip(counts).map(|(x, n)| f(x) * f64::from(n)).sum::<f64>();
                let nodes = a + b + c;
                let missing = (need.weight - sum(|x| x.weight)).max(0.0);
                let price = sum(|x| x.price) + if missing > 0.0 { missing * need.shortage } else { 0.0 };
                if price.is_finite() && nodes >= need.least && nodes <= need.most {
                    best = Some(best.map_or(price, |p: f64| p.min(price)));
                }
            }}}
            let found = cheapest(&items, need);
            prop_assert_eq!(found.as_ref().map(|f| f.price), best, "{:?}", found);
        }

        #[test]
        fn more_demand_never_lowers_price_and_shortage(
            raw in prop::collection::vec((0.5f64..9.0, 0.5f64..9.0, 0u32..5), 0..4), need in 0.0f64..40.0, more in 0.0f64..9.0, shortage in 0.0f64..3.0
        ) {
            let items: Vec<Item> = raw.iter().map(|&(w, p, q)| item(w, p, q)).collect();
            let at = |weight: f64| cheapest(&items, Need { weight, least: 0, most: 20, shortage });
            let price = |found: Option<Chosen>| found.map_or(0.0, |c| c.price);
            // Without any useful flavor nothing is chosen, and all is shortage.
            if items.iter().any(|i| i.most > 0) {
                prop_assert!(price(at(need)) <= price(at(need + more)) + 1e-9);
                prop_assert!(price(at(need)) <= need * shortage + 1e-9);
            }
        }
    }
}
