//! `window_start` and `window_end` in the SELECT, GROUP BY and HAVING of the query block that calls `tumble`/`hop`.
//!
//! They are rewritten in the syntax tree: `window_start` to the call itself, `window_end` to the call plus the width.
//! A block without such a call is left alone, so an outer block may use columns of these names.

use crate::sql::window_fn::Kind;
use datafusion::sql::sqlparser::ast::{
    BinaryOperator, Expr, FunctionArg, FunctionArgExpr, FunctionArguments, GroupByExpr, Ident, Select, SelectItem,
    Statement, Visit, VisitMut, Visitor, VisitorMut,
};
use std::ops::ControlFlow;

const WINDOW_START: &str = "window_start";
const WINDOW_END: &str = "window_end";

/// Rewrites every query block of `statement` that calls a window function.
pub fn expand(statement: &mut Statement) {
    let _: ControlFlow<()> = VisitMut::visit(statement, &mut Blocks);
}

struct Blocks;

impl VisitorMut for Blocks {
    type Break = ();

    fn pre_visit_select(&mut self, select: &mut Select) -> ControlFlow<()> {
        if let Some(bounds) = Bounds::of(select) {
            bounds.name_bare_items(&mut select.projection);
            // The results are discarded because this visitor never breaks.
            let mut replace = Replace(bounds);
            let _ = VisitMut::visit(&mut select.projection, &mut replace);
            let _ = VisitMut::visit(&mut select.group_by, &mut replace);
            let _ = VisitMut::visit(&mut select.having, &mut replace);
        }
        ControlFlow::Continue(())
    }
}

/// The two expressions of a block.
struct Bounds {
    start: Expr,
    end: Expr,
}

impl Bounds {
    /// From the first window call in the block's own SELECT list and GROUP BY.
    fn of(select: &Select) -> Option<Bounds> {
        let mut find = FindCall(None);
        let _ = select.projection.visit(&mut find);
        if let GroupByExpr::Expressions(expressions, _) = &select.group_by {
            let _ = expressions.visit(&mut find);
        }
        let (start, width) = find.0?;
        let sum = Expr::BinaryOp { left: Box::new(start.clone()), op: BinaryOperator::Plus, right: Box::new(width) };
        Some(Bounds { start, end: Expr::Nested(Box::new(sum)) })
    }

    fn replacement(&self, expression: &Expr) -> Option<Expr> {
        match expression {
            Expr::Identifier(name) if is(name, WINDOW_START) => Some(self.start.clone()),
            Expr::Identifier(name) if is(name, WINDOW_END) => Some(self.end.clone()),
            _ => None,
        }
    }

    /// `SELECT window_start` keeps its name.
    fn name_bare_items(&self, items: &mut [SelectItem]) {
        for item in items {
            if let SelectItem::UnnamedExpr(Expr::Identifier(name)) = item
                && (is(name, WINDOW_START) || is(name, WINDOW_END))
            {
                *item = SelectItem::ExprWithAlias { expr: Expr::Identifier(name.clone()), alias: name.clone() };
            }
        }
    }
}

fn is(identifier: &Ident, name: &str) -> bool {
    identifier.quote_style.is_none() && identifier.value.eq_ignore_ascii_case(name)
}

struct Replace(Bounds);

impl VisitorMut for Replace {
    type Break = ();

    fn post_visit_expr(&mut self, expression: &mut Expr) -> ControlFlow<()> {
        if let Some(replacement) = self.0.replacement(expression) {
            *expression = replacement;
        }
        ControlFlow::Continue(())
    }
}

/// The first window call and its last argument, the width.
struct FindCall(Option<(Expr, Expr)>);

impl Visitor for FindCall {
    type Break = ();

    fn pre_visit_expr(&mut self, expression: &Expr) -> ControlFlow<()> {
        match width_of_call(expression) {
            Some(width) => {
                self.0.get_or_insert_with(|| (expression.clone(), width.clone()));
                ControlFlow::Break(())
            }
            None => ControlFlow::Continue(()),
        }
    }
}

fn width_of_call(expression: &Expr) -> Option<&Expr> {
    let Expr::Function(function) = expression else { return None };
    Kind::of(&function.name.to_string())?;
    let FunctionArguments::List(list) = &function.args else { return None };
    match list.args.last()? {
        FunctionArg::Unnamed(FunctionArgExpr::Expr(width)) => Some(width),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use datafusion::sql::sqlparser::dialect::GenericDialect;
    use datafusion::sql::sqlparser::parser::Parser;

    fn expanded(sql: &str) -> String {
        let mut statements = Parser::parse_sql(&GenericDialect {}, sql).unwrap();
        expand(&mut statements[0]);
        statements[0].to_string()
    }

    fn check(sql: &str, expected: &str) {
        assert_eq!(expanded(sql), expected);
    }

    #[test]
    fn start_and_end_of_a_tumble() {
        check(
            "SELECT window_start, window_end AS until, route FROM t GROUP BY tumble(ts, INTERVAL '5 seconds'), route",
            "SELECT tumble(ts, INTERVAL '5 seconds') AS window_start, \
             (tumble(ts, INTERVAL '5 seconds') + INTERVAL '5 seconds') AS until, route \
             FROM t GROUP BY tumble(ts, INTERVAL '5 seconds'), route",
        );
    }

    #[test]
    fn the_end_of_a_hop_is_its_width_away() {
        check(
            "SELECT max(window_end) FROM t GROUP BY hop(ts, INTERVAL '1 seconds', INTERVAL '9 seconds')",
            "SELECT max((hop(ts, INTERVAL '1 seconds', INTERVAL '9 seconds') + INTERVAL '9 seconds')) \
             FROM t GROUP BY hop(ts, INTERVAL '1 seconds', INTERVAL '9 seconds')",
        );
    }

    #[test]
    fn blocks_without_a_call_and_quoted_names_are_left_alone() {
        for sql in ["SELECT window_start FROM t", "SELECT \"window_end\" FROM t GROUP BY a"] {
            check(sql, sql);
        }
        check(
            "SELECT window_start FROM (SELECT window_start, n FROM t GROUP BY tumble(ts, INTERVAL '5 seconds'), n)",
            "SELECT window_start FROM (SELECT tumble(ts, INTERVAL '5 seconds') AS window_start, n FROM t \
             GROUP BY tumble(ts, INTERVAL '5 seconds'), n)",
        );
    }
}
