'use strict';
'require dom';
'require fs';
'require poll';
'require uci';
'require view';

// What the tunnels do, from the status file that each of them writes. procd is not asked: its list of services has
// the environment of all of them, keys included.

const INTERVAL = 3; // seconds
const POINTS = 72; // six minutes: a status is new every 5 s
const WIDTH = 320, HEIGHT = 90; // of a chart, in its own units
const SVG = 'http://www.w3.org/2000/svg';
const COLOURS = [ '#0069d6', '#3c9a5f' ];

let earlier = {}; // section -> its status at the last poll
let points = {}; // section -> what its charts show, the oldest first

function read(path) {
	return L.resolveDefault(fs.read(path), '');
}

// The status of a tunnel that runs, or null: a file may be that of a process that was killed.
function read_status(section_id) {
	return read('/var/run/kcptun-lite/' + section_id + '.json').then(function(text) {
		let status;

		try {
			status = JSON.parse(text);
		}
		catch (error) {
			return null; // not written yet
		}
		return read('/proc/' + status.pid + '/comm').then(function(name) {
			return name.startsWith('kcptun-lite') ? status : null;
		});
	});
}

// As the init script reads it: any word for yes, and 24.10's `disabled` where there is no `enabled`.
function is_enabled(section) {
	const is_on = function(word) { return /^(1|on|true|yes|enabled)$/i.test(word); };

	return section.enabled != null ? is_on(section.enabled) : section.disabled != null && !is_on(section.disabled);
}

function load_all() {
	return Promise.all(uci.sections('kcptun-lite').filter(function(section) {
		return section['.type'] == 'client' || section['.type'] == 'server';
	}).map(function(section) {
		return read_status(section['.name']).then(function(status) {
			return { name: section['.name'], enabled: is_enabled(section), running: !!status, status: status };
		});
	}));
}

function duration(seconds) {
	if (seconds >= 86400)
		return _('%d d %d h').format(seconds / 86400, seconds % 86400 / 3600);
	if (seconds >= 3600)
		return _('%d h %d min').format(seconds / 3600, seconds % 3600 / 60);
	return _('%d min %d s').format(seconds / 60, seconds % 60);
}

function percent(part, whole) {
	return '%.1f %%'.format(whole ? 100 * part / whole : 0);
}

function both_ways(values, unit) {
	return E('div', [ '↓ %1024.1m'.format(values[0]) + unit, E('br'), '↑ %1024.1m'.format(values[1]) + unit ]);
}

// Bytes per second since the last poll, [in, out]; null before there are two.
function rates(name, status) {
	const last = earlier[name];

	if (!last || last.pid != status.pid || last.updated >= status.updated)
		return last && last.pid == status.pid ? last.rates : null;

	return [ 'bytes_in', 'bytes_out' ].map(function(key) {
		return (status[key] - last[key]) / (status.updated - last.updated);
	});
}

// The session that stands for the line: it moves most now, or has most streams.
function busiest(status) {
	const weight = function(session) { return (session.in_bytes_s + session.out_bytes_s) || 0; };

	return status.sessions.reduce(function(best, session) {
		return !best || weight(session) > weight(best) ||
			(weight(session) == weight(best) && session.streams > best.streams) ? session : best;
	}, null);
}

// Each status is one point; of what is not known, as before the second one, there is none.
function remember(name, status) {
	const known = points[name] = points[name] || [];
	const session = busiest(status) || {};

	if (known.length && known[known.length - 1].at >= status.updated)
		return;
	known.push({
		at: status.updated,
		received: status.rates ? status.rates[0] : null,
		sent: status.rates ? status.rates[1] : null,
		rtt: session.rtt_ms || null,
		rtt_least: session.rtt_least_ms || null,
		loss: session.loss != null ? 100 * session.loss : null
	});
	if (known.length > POINTS)
		known.shift();
}

function draw(tag, attributes, content) {
	const node = document.createElementNS(SVG, tag);

	Object.entries(attributes).forEach(function(entry) { node.setAttribute(entry[0], entry[1]); });
	dom.append(node, content);
	return node;
}

// 1, 2 or 5 with zeros and a unit, so that the scale does not jump with each point. `base`: of the units.
function round_up(value, base) {
	let unit = 1;

	while (value / unit >= base)
		unit *= base;
	return unit * [ 1, 2, 5, 10, 20, 50, 100, 200, 500, base ].find(function(step) { return step * unit >= value; });
}

// A line for each key; `words` makes a text of a value.
function chart(title, known, keys, base, words) {
	const values = known.reduce(function(all, point) {
		return all.concat(keys.map(function(key) { return point[key]; }));
	}, []);
	const most = round_up(Math.max.apply(null, values.concat(0)), base);
	const now = known.length ? known[known.length - 1] : { at: 0 };
	const place = function(point, key) {
		const x = WIDTH * (1 - (now.at - point.at) / (5 * (POINTS - 1)));
		return '%.1f,%.1f'.format(x, HEIGHT - HEIGHT * point[key] / most);
	};
	const grid = [ 0, 0.5, 1 ].map(function(part) {
		const y = HEIGHT * part;
		return draw('line', { x1: 0, x2: WIDTH, y1: y, y2: y, stroke: 'currentColor', 'stroke-opacity': 0.2 });
	});
	const lines = keys.map(function(key, number) {
		const seen = known.filter(function(point) { return point[key] != null; });
		return draw('polyline', {
			'data-key': key, points: seen.map(function(point) { return place(point, key); }).join(' '),
			fill: 'none', stroke: COLOURS[number], 'stroke-width': 1.5, 'stroke-linejoin': 'round'
		});
	});
	const legend = keys.map(function(key, number) {
		const text = now[key] == null ? '–' : words(now[key], key);
		return E('span', { 'style': 'color:%s; margin-left:1em'.format(COLOURS[number]) }, text);
	});
	const scale = draw('text', { x: 3, y: 11, 'font-size': 10, fill: 'currentColor', 'fill-opacity': 0.6 }, words(most));
	const box = { viewBox: '0 -2 %d %d'.format(WIDTH, HEIGHT + 4), style: 'width:100%; display:block' };

	return E('div', { 'style': 'flex:1 1 260px; min-width:0' }, [
		E('div', [ E('strong', title) ].concat(legend)),
		draw('svg', box, grid.concat(lines, scale))
	]);
}

function charts(tunnels) {
	return tunnels.filter(function(tunnel) { return tunnel.running; }).map(function(tunnel) {
		const known = points[tunnel.name];

		return E('div', { 'class': 'charts', 'data-tunnel': tunnel.name }, [
			E('h4', tunnel.name),
			E('div', { 'style': 'display:flex; flex-wrap:wrap; gap:8px 20px' }, [
				chart(_('Throughput'), known, [ 'received', 'sent' ], 1024, function(value, key) {
					return ({ received: '↓ ', sent: '↑ ' }[key] || '') + '%1024.1mB/s'.format(value);
				}),
				chart(_('Round trip'), known, [ 'rtt', 'rtt_least' ], 1000, function(value, key) {
					return (key == 'rtt_least' ? '≥ ' : '') + '%d ms'.format(value);
				}),
				chart(_('Loss'), known, [ 'loss' ], 1000, function(value) { return '%.1f %%'.format(value); })
			])
		]);
	});
}

function state(tunnel) {
	if (tunnel.running)
		return E('span', { 'class': 'label success' }, _('Running'));
	if (tunnel.enabled)
		return E('span', { 'class': 'label warning' }, _('Not running'));
	return E('span', { 'class': 'label' }, _('Disabled'));
}

function row(cells) {
	return E('tr', { 'class': 'tr' }, cells.map(function(cell) {
		return E('td', { 'class': 'td' }, [ cell ]);
	}));
}

function table(id, titles, rows, empty) {
	return E('table', { 'class': 'table', 'id': id }, [
		E('tr', { 'class': 'tr table-titles' }, titles.map(function(title) {
			return E('th', { 'class': 'th' }, [ title ]);
		}))
	].concat(rows.length ? rows : [ E('tr', { 'class': 'tr placeholder' }, [ E('td', { 'class': 'td' }, [ empty ]) ]) ]));
}

function tunnel_row(tunnel) {
	const status = tunnel.status;
	const title = E('strong', tunnel.name);

	if (!status)
		return row([ title, state(tunnel), '', '', '', '', '' ]);

	const now = rates(tunnel.name, status);

	status.rates = now;
	earlier[tunnel.name] = status;
	remember(tunnel.name, status);
	return row([
		title,
		E('div', [ state(tunnel), E('br'), E('small', duration(status.uptime_s)) ]),
		'%d / %d'.format(status.session_count || status.sessions.length, status.streams),
		now ? both_ways(now, 'B/s') : '…',
		both_ways([ status.bytes_in, status.bytes_out ], 'B'),
		_('%s sent again, %d recovered, %d damaged').format(
			percent(status.retransmitted, status.packets_out), status.recovered, status.checksum_errors),
		'%1024.1mB'.format(status.memory_bytes)
	]);
}

function session_rows(tunnels) {
	return [].concat.apply([], tunnels.map(function(tunnel) {
		return ((tunnel.status || {}).sessions || []).map(function(session) {
			return row([
				tunnel.name,
				session.remote,
				'%d ms'.format(session.rtt_ms),
				'%d'.format(session.streams),
				duration(session.age_s),
				_('%d s ago').format(session.idle_s)
			]);
		});
	}));
}

function diagnoses(tunnels) {
	return tunnels.filter(function(tunnel) {
		return tunnel.status && tunnel.status.last_diagnosis;
	}).map(function(tunnel) {
		return E('div', { 'class': 'alert-message warning' }, [
			E('strong', tunnel.name + ': '), tunnel.status.last_diagnosis
		]);
	});
}

function content(tunnels) {
	const rows = tunnels.map(tunnel_row); // which makes the newest points

	return diagnoses(tunnels).concat([
		E('h3', _('Tunnels')),
		table('tunnels', [
			_('Name'), _('State'), _('Sessions / streams'), _('Throughput'), _('Carried'), _('Loss'), _('Memory')
		], rows, _('There are no tunnels yet.'))
	], charts(tunnels), [
		E('h3', _('Sessions')),
		table('sessions', [
			_('Tunnel'), _('Other end'), _('Round trip'), _('Streams'), _('Age'), _('Last heard')
		], session_rows(tunnels), _('There are no sessions. A client makes one when it is first used.'))
	]);
}

return view.extend({
	load: function() {
		return uci.load('kcptun-lite').then(load_all);
	},

	render: function(tunnels) {
		const node = E('div', { 'class': 'cbi-section' }, content(tunnels));

		poll.add(function() {
			return load_all().then(function(changed) {
				dom.content(node, content(changed));
			});
		}, INTERVAL);

		return E('div', [ E('h2', 'kcptun-lite'), node ]);
	},

	handleSave: null,
	handleSaveApply: null,
	handleReset: null
});
