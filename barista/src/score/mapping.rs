//! Columns of a table to the inputs of a model. Pure.
//!
//! An input takes the columns that `--map` names for it; else the column of its own name, a list or one number; else,
//! when it is the model's only input, all columns of numbers in their order. What a cell holds is not judged here: the
//! node refuses what is no number or of the wrong size, with its reason.

use schemas::status::{ModelSignature, TensorSignature};
use serde_json::{Value, json};
use std::str::FromStr;

/// `--map INPUT=COLUMN,COLUMN…`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MapOption {
    /// Input of the model.
    pub input: String,
    /// Its columns in order.
    pub columns: Vec<String>,
}

impl FromStr for MapOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (input, columns) = text.split_once('=').ok_or("not INPUT=COLUMN,COLUMN…")?;
        let columns: Vec<String> = columns.split(',').map(|c| c.trim().to_owned()).collect();
        if input.is_empty() || columns.iter().any(String::is_empty) {
            return Err("not INPUT=COLUMN,COLUMN…".to_owned());
        }
        Ok(MapOption { input: input.trim().to_owned(), columns })
    }
}

/// A column of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Name.
    pub name: String,
    /// Holds one number a row.
    pub is_number: bool,
}

/// Which columns each input takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    inputs: Vec<(TensorSignature, Vec<usize>)>,
}

impl Mapping {
    /// Fits a table to a model; the error says what to write.
    pub fn new(signature: &ModelSignature, columns: &[Column], options: &[MapOption]) -> Result<Self, String> {
        let names = || columns.iter().map(|c| format!("`{}`", c.name)).collect::<Vec<_>>().join(", ");
        let find = |name: &str| columns.iter().position(|c| c.name == name);
        if let Some(strange) = options.iter().find(|o| signature.inputs.iter().all(|i| i.name != o.input)) {
            let inputs: Vec<String> = signature.inputs.iter().map(|i| format!("`{}`", i.name)).collect();
            return Err(format!("--map {}: no such input, the model has {}", strange.input, inputs.join(", ")));
        }
        let mut inputs = Vec::new();
        for input in &signature.inputs {
            let taken = if let Some(option) = options.iter().find(|o| o.input == input.name) {
                let column = |name: &String| {
                    find(name).ok_or_else(|| format!("--map {}: no column `{name}` in {}", input.name, names()))
                };
                option.columns.iter().map(column).collect::<Result<Vec<_>, _>>()?
            } else if let Some(column) = find(&input.name) {
                vec![column]
            } else if signature.inputs.len() == 1 {
                (0..columns.len()).filter(|i| columns[*i].is_number).collect()
            } else {
                return Err(format!("input `{0}`: no such column; say --map {0}=COLUMN,… of {1}", input.name, names()));
            };
            if taken.is_empty() {
                return Err(format!("input `{}`: no column of numbers among {}", input.name, names()));
            }
            inputs.push((input.clone(), taken));
        }
        Ok(Mapping { inputs })
    }

    /// The request of one row, given by its cells.
    pub fn request(&self, cells: &[Value]) -> Value {
        let tensor = |(input, columns): &(TensorSignature, Vec<usize>)| {
            let mut data = Vec::new();
            for cell in columns.iter().filter_map(|i| cells.get(*i)) {
                flatten(cell, &mut data);
            }
            let wanted: Vec<usize> = input.shape.iter().map(|&n| usize::try_from(n).unwrap_or(1)).collect();
            let fits = wanted.iter().product::<usize>() == data.len();
            // What does not fit is sent as it is: the node says so.
            let shape = if fits { wanted } else { vec![1, data.len()] };
            json!({"name": input.name, "shape": shape, "datatype": input.datatype, "data": data})
        };
        json!({"inputs": self.inputs.iter().map(tensor).collect::<Vec<_>>()})
    }
}

fn flatten(value: &Value, out: &mut Vec<Value>) {
    match value {
        Value::Array(values) => values.iter().for_each(|v| flatten(v, out)),
        other => out.push(other.clone()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn signature(inputs: &[(&str, &[i64])]) -> ModelSignature {
        let tensor = |(name, shape): &(&str, &[i64])| TensorSignature {
            name: (*name).to_owned(),
            datatype: "FP32".to_owned(),
            shape: shape.to_vec(),
        };
        ModelSignature { max_rows: 8, inputs: inputs.iter().map(tensor).collect(), outputs: Vec::new() }
    }

    fn columns(names: &[&str]) -> Vec<Column> {
        names.iter().map(|n| Column { name: (*n).to_owned(), is_number: *n != "text" && *n != "list" }).collect()
    }

    #[test]
    fn columns_are_found_by_option_name_or_order() {
        let one = signature(&[("x", &[-1, 3])]);
        let table = columns(&["a", "text", "b", "list", "c"]);
        let cells = [json!(1), json!("t"), json!(2.5), json!([[7, 8], [9]]), json!(3)];
        let data = |mapping: Mapping| mapping.request(&cells)["inputs"][0].clone();
        let order = data(Mapping::new(&one, &table, &[]).unwrap());
        assert_eq!(order, json!({"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2.5, 3]}));
        let named = data(Mapping::new(&one, &table, &["x=c,a".parse().unwrap()]).unwrap());
        assert_eq!((&named["data"], &named["shape"]), (&json!([3, 1]), &json!([1, 2])), "the node refuses the shape");
        let list = signature(&[("list", &[-1, 3, 1])]);
        let list = data(Mapping::new(&list, &table, &[]).unwrap());
        assert_eq!((&list["data"], &list["shape"]), (&json!([7, 8, 9]), &json!([1, 3, 1])));
    }

    #[test]
    fn what_cannot_be_fitted_says_what_to_write() {
        let two = signature(&[("x", &[-1, 1]), ("z", &[-1, 1])]);
        let cases = [
            (Mapping::new(&two, &columns(&["x", "b"]), &[]), "--map z=COLUMN"),
            (Mapping::new(&two, &columns(&["x", "b"]), &["z=q".parse().unwrap()]), "no column `q`"),
            (Mapping::new(&two, &columns(&["x", "b"]), &["q=b".parse().unwrap()]), "no such input"),
            (Mapping::new(&signature(&[("x", &[-1, 1])]), &columns(&["text"]), &[]), "no column of numbers"),
        ];
        for (outcome, says) in cases {
            let why = outcome.unwrap_err();
            assert!(why.contains(says), "{why}");
        }
        for bad in ["x", "=a", "x=a,,b", "x="] {
            assert!(bad.parse::<MapOption>().is_err(), "{bad}");
        }
    }
}
