'use strict';

// Stand-in for LuCI's client side: as much of E, L, dom, rpc, uci, form, fs, poll and view as our views use,
// with the same names and the same order of events. RPC goes to the test's server, which knows the ACL.

(function() {

String.prototype.format = function() {
	const values = Array.prototype.slice.call(arguments);

	return this.replace(/%(\d*)(\.\d+)?([a-zA-Z%])/g, function(all, base, precision, kind) {
		if (kind == '%')
			return '%';
		const value = values.shift();
		const digits = precision ? +precision.slice(1) : 0;
		switch (kind) {
		case 'd': return String(Math.floor(value));
		case 'f': return (+value).toFixed(digits);
		case 'm': {
			const units = [ '', 'Ki', 'Mi', 'Gi', 'Ti' ];
			let number = +value, unit = 0;
			for (; number >= +base && unit < 4; unit++)
				number /= +base;
			return number.toFixed(unit ? digits : 0) + ' ' + units[unit];
		}
		default: return String(value);
		}
	});
};

const translations = {};
window._ = function(text) { return translations[text] || text; };

// E(tag, attributes or content, content)
window.E = function(tag, attributes, content) {
	const node = document.createElement(tag);

	if (typeof attributes != 'object' || attributes instanceof Node || Array.isArray(attributes) || attributes == null) {
		content = attributes;
		attributes = {};
	}
	Object.entries(attributes).forEach(function(entry) {
		if (typeof entry[1] == 'function')
			node.addEventListener(entry[0], entry[1]);
		else if (entry[1] != null)
			node.setAttribute(entry[0], entry[1]);
	});
	dom.append(node, content);
	return node;
};

const dom = {
	append: function(node, content) {
		[].concat(content == null ? [] : content).forEach(function(child) {
			node.append(child);
		});
	},
	content: function(node, content) {
		node.replaceChildren();
		dom.append(node, content);
	}
};

window.L = {
	resolveDefault: function(value, other) {
		return Promise.resolve(value).catch(function() { return other; });
	}
};

function call(object, method, parameters) {
	return fetch('/ubus', { method: 'POST', body: JSON.stringify([ object, method, parameters ]) })
		.then(function(reply) { return reply.json(); })
		.then(function(reply) {
			if (reply[0])
				throw new Error('ubus code ' + reply[0]);
			return reply[1];
		});
}

const rpc = {
	declare: function(options) {
		return function() {
			const values = arguments, parameters = {};
			(options.params || []).forEach(function(name, at) { parameters[name] = values[at]; });
			return call(options.object, options.method, parameters).then(function(reply) {
				const expected = Object.entries(options.expect || {})[0];
				return expected ? (reply[expected[0]] == null ? expected[1] : reply[expected[0]]) : reply;
			});
		};
	}
};

const fs = {
	read: function(path) {
		return call('file', 'read', { path: path }).then(function(reply) { return reply.data; });
	}
};

const poll = {
	add: function(what, seconds) {
		window.poll_now = what;
		window.poll_interval = seconds;
	}
};

// -- uci ---------------------------------------------------------------------------------------------------

let config = {};

const uci = {
	load: function(name) {
		return call('uci', 'get', { config: name }).then(function(reply) { config = reply.values; });
	},
	sections: function(name, type) {
		return Object.values(config).filter(function(section) { return !type || section['.type'] == type; });
	},
	get: function(name, section_id, option) {
		const section = config[section_id];
		return option == null ? section : (section || {})[option];
	},
	set: function(name, section_id, option, value) { config[section_id][option] = value; },
	unset: function(name, section_id, option) { delete config[section_id][option]; },
	add: function(name, type, section_id) {
		config[section_id] = { '.type': type, '.name': section_id };
		return section_id;
	},
	remove: function(name, section_id) { delete config[section_id]; }
};

// -- validation --------------------------------------------------------------------------------------------

const datatypes = {
	string: function() { return true; },
	uinteger: function(v) { return /^\d+$/.test(v); },
	integer: function(v) { return /^-?\d+$/.test(v); },
	port: function(v) { return /^\d+$/.test(v) && +v <= 65535; },
	portrange: function(v) {
		const m = /^(\d+)-(\d+)$/.exec(v);
		return !!m && +m[1] <= +m[2] && +m[2] <= 65535;
	},
	ipaddr: function(v) { return /^[0-9.]+$/.test(v) || (/:/.test(v) && /^[0-9a-f:.]+$/i.test(v)); },
	host: function(v) { return /^[\w.-]+$/.test(v) || datatypes.ipaddr(v); },
	uciname: function(v) { return /^[A-Za-z0-9_]+$/.test(v); },
	min: function(v, low) { return datatypes.integer(v) && +v >= +low; },
	range: function(v, low, high) { return datatypes.integer(v) && +v >= +low && +v <= +high; }
};

// or("auto", range(1, 9)): a word in quotes is that word alone; a comma in parentheses parts nothing here.
function fits(datatype, value) {
	if (/^".*"$/.test(datatype))
		return value == datatype.slice(1, -1);

	const m = /^(\w+)(?:\((.*)\))?$/.exec(datatype);
	const inner = ((m[2] || '').match(/(?:[^,(]|\([^)]*\))+/g) || []).map(function(part) { return part.trim(); });

	if (m[1] == 'or')
		return inner.some(function(part) { return fits(part, value); });
	if (!datatypes[m[1]])
		throw new Error('unknown datatype ' + datatype);
	return datatypes[m[1]].apply(null, [ value ].concat(inner));
}

// -- form --------------------------------------------------------------------------------------------------

function Value(section, tab, name, title, description) {
	Object.assign(this, { section: section, tab: tab, option: name, title: title, description: description,
		keylist: [], vallist: [], deps: [] });
}
Value.prototype = {
	value: function(key, label) { this.keylist.push(key); this.vallist.push(label || key); },
	depends: function(name, value) { this.deps.push([ name, value ]); },
	cfgvalue: function(section_id) { return uci.get('', section_id, this.option); },
	formvalue: function(section_id) {
		const input = document.querySelector('[name="' + section_id + '.' + this.option + '"]');
		return !input ? null : input.type == 'checkbox' ? (input.checked ? '1' : '0') : input.value;
	},
	is_active: function(section_id) {
		return this.deps.every(function(dep) {
			return this.section.formvalue(section_id, dep[0]) == dep[1];
		}, this);
	},
	input: function(section_id) {
		const value = this.cfgvalue(section_id);
		return E('input', { name: section_id + '.' + this.option, type: this.password ? 'password' : 'text',
			placeholder: this.placeholder, value: value == null ? '' : value });
	},
	problem: function(section_id) {
		const value = this.formvalue(section_id);

		if (value === '' && this.rmempty === false)
			return 'Expecting: non-empty value';
		if (value !== '' && this.datatype && !fits(this.datatype, value))
			return 'Expecting: ' + this.datatype;
		const result = this.validate ? this.validate(section_id, value) : true;
		return result === true ? null : result;
	},
	parse: function(section_id) {
		const value = this.formvalue(section_id);

		if (!this.is_active(section_id) || value === '')
			uci.unset('', section_id, this.option);
		else if (value != this.cfgvalue(section_id))
			uci.set('', section_id, this.option, value);
	}
};

function ListValue() { Value.apply(this, arguments); }
ListValue.prototype = Object.assign(Object.create(Value.prototype), {
	input: function(section_id) {
		const chosen = this.cfgvalue(section_id) || this.default;
		return E('select', { name: section_id + '.' + this.option }, this.keylist.map(function(key, at) {
			return E('option', { value: key, selected: key == chosen ? '' : null }, this.vallist[at]);
		}, this));
	}
});

function Flag() { Value.apply(this, arguments); }
Flag.prototype = Object.assign(Object.create(Value.prototype), {
	input: function(section_id) {
		return E('input', { name: section_id + '.' + this.option, type: 'checkbox',
			checked: this.cfgvalue(section_id) == '1' ? '' : null });
	},
	parse: function(section_id) {
		if (this.formvalue(section_id) == '1')
			uci.set('', section_id, this.option, '1');
		else if (this.rmempty === false)
			uci.set('', section_id, this.option, '0');
		else
			uci.unset('', section_id, this.option);
	}
});

function DummyValue() { Value.apply(this, arguments); }
DummyValue.prototype = Object.create(Value.prototype);

function GridSection(map, type, title, description) {
	Object.assign(this, { map: map, sectiontype: type, title: title, description: description, tabs: [], children: [] });
}
GridSection.prototype = {
	tab: function(name, title) { this.tabs.push([ name, title ]); },
	taboption: function(tab, kind, name, title, description) {
		const option = new kind(this, tab, name, title, description);
		this.children.push(option);
		return option;
	},
	formvalue: function(section_id, name) {
		const option = this.children.find(function(child) { return child.option == name; });
		return option ? option.formvalue(section_id) : null;
	},
	render: function() {
		const self = this;
		const columns = this.children.filter(function(option) { return option.modalonly !== true; });
		const name = E('input', { 'class': 'cbi-section-create-name', placeholder: _('Name') });

		return E('div', { 'class': 'cbi-section', id: 'cbi-' + this.sectiontype }, [
			E('h3', this.title), E('p', this.description),
			E('table', { 'class': 'table' }, [
				E('tr', { 'class': 'tr table-titles' }, [ E('th', _('Name')) ].concat(columns.map(function(option) {
					return E('th', option.title);
				}), [ E('th', '') ]))
			].concat(uci.sections('', this.sectiontype).map(function(section) {
				const section_id = section['.name'];
				return E('tr', { 'class': 'tr', 'data-section-id': section_id }, [ E('td', E('strong', section_id)) ].concat(
					columns.map(function(option) {
						return E('td', option.editable ? option.input(section_id) : option.cfgvalue(section_id) || '-');
					}),
					[ E('td', [
						E('button', { 'class': 'edit', click: function() { self.renderMoreOptionsModal(section_id); } }, _('Edit')),
						E('button', { 'class': 'delete', click: function() {
							uci.remove('', section_id);
							self.map.render();
						} }, _('Delete'))
					]) ]
				));
			}))),
			name,
			E('button', { 'class': 'add', click: function() {
				self.renderMoreOptionsModal(uci.add('', self.sectiontype, name.value), true);
			} }, this.addbtntitle)
		]);
	},
	renderMoreOptionsModal: function(section_id, is_new) {
		const self = this;
		const options = this.children.filter(function(option) { return option.modalonly !== false; });
		const before = JSON.stringify(config[section_id]);
		const fields = {};

		function check() {
			return options.filter(function(option) {
				const active = option.is_active(section_id);
				const problem = active ? option.problem(section_id) : null;
				const field = fields[option.option];
				field.hidden = !active;
				field.querySelector('.error').textContent = problem || '';
				return problem;
			}).length == 0;
		}

		// The table of the page shows the same options: what stands in the dialog counts while it is open.
		document.querySelectorAll('#view input, #view select').forEach(function(input) { input.removeAttribute('name'); });
		const modal = E('div', { id: 'modal', change: check, input: check }, [
			E('h4', this.modaltitle(section_id)),
			E('div', { 'class': 'tabs' }, this.tabs.map(function(tab) {
				return E('button', { 'data-tab': tab[0], click: function() { show(tab[0]); } }, tab[1]);
			}))
		].concat(this.tabs.map(function(tab) {
			return E('div', { 'class': 'tab', 'data-tab': tab[0] }, options.filter(function(option) {
				return option.tab == tab[0];
			}).map(function(option) {
				fields[option.option] = E('div', { 'class': 'cbi-value', 'data-name': option.option }, [
					E('label', option.title), option.input(section_id),
					E('span', { 'class': 'error' }), E('small', option.description)
				]);
				return fields[option.option];
			}));
		}), [
			E('button', { 'class': 'dismiss', click: function() {
				if (is_new)
					delete config[section_id];
				else
					config[section_id] = JSON.parse(before);
				close();
			} }, _('Dismiss')),
			E('button', { 'class': 'save', click: function() {
				if (check()) {
					options.forEach(function(option) { option.parse(section_id); });
					close();
				}
			} }, _('Save'))
		]));

		function show(tab) {
			modal.querySelectorAll('[data-tab]').forEach(function(node) {
				node.classList.toggle('active', node.dataset.tab == tab);
			});
		}

		function close() {
			modal.remove();
			self.map.render();
		}

		document.body.append(modal);
		show(this.tabs[0][0]);
		check();
	}
};

function Map(name, title, description) {
	Object.assign(this, { name: name, title: title, description: description, sections: [], node: E('div') });
	window.current_map = this;
}
Map.prototype = {
	section: function(kind, type, title, description) {
		const section = new kind(this, type, title, description);
		this.sections.push(section);
		return section;
	},
	render: function() {
		dom.content(this.node, [ E('h2', this.title), E('p', this.description) ].concat(this.sections.map(function(section) {
			return section.render();
		})));
		return Promise.resolve(this.node);
	},
	// What the page shows goes into the configuration, that to the server.
	save: function() {
		this.sections.forEach(function(section) {
			uci.sections('', section.sectiontype).forEach(function(values) {
				section.children.forEach(function(option) {
					if (option.editable)
						option.parse(values['.name']);
				});
			});
		});
		return call('uci', 'apply', { config: this.name, values: config });
	}
};

const modules = {
	dom: dom, fs: fs, poll: poll, rpc: rpc, uci: uci,
	form: { Map: Map, GridSection: GridSection, Value: Value, ListValue: ListValue, Flag: Flag, DummyValue: DummyValue },
	view: { extend: function(properties) { return properties; } }
};

// A view is a function body whose first lines name its modules: 'require form';
window.load_view = function(name) {
	return fetch('/view/' + name + '.js').then(function(reply) { return reply.text(); }).then(function(source) {
		const names = Array.from(source.matchAll(/^'require (\w+)';$/mg), function(match) { return match[1]; });
		const view = Function.apply(null, names.concat([ source ])).apply(null, names.map(function(module) {
			if (!modules[module])
				throw new Error('unknown module ' + module);
			return modules[module];
		}));
		return Promise.resolve(view.load()).then(function(data) { return view.render(data); }).then(function(node) {
			const buttons = view.handleSave === null ? [] : [
				E('button', { id: 'apply', click: function() { window.current_map.save(); } }, _('Save & Apply'))
			];
			dom.content(document.querySelector('#view'), [ node ].concat(buttons));
			document.body.classList.add('ready');
		});
	}).catch(function(error) {
		document.body.append(E('pre', { id: 'failure' }, String(error.stack || error)));
	});
};

window.translate = function(catalogue) { Object.assign(translations, catalogue); };

})();
