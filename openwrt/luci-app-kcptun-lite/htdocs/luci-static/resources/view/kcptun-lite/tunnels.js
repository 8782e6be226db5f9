'use strict';
'require form';
'require uci';
'require view';

// The settings of /etc/config/kcptun-lite. An option that is empty here is not in the file, and then the program's
// own default counts; so what a tunnel needs to suit a small device is put into new ones.

const CRYPTS = [
	'aes', 'aes-128', 'aes-128-gcm', 'aes-192', 'salsa20', 'blowfish', 'twofish', 'cast5', '3des', 'tea', 'xtea',
	'xor', 'sm4', 'none', 'null'
];
const MODES = [ 'fast3', 'fast2', 'fast', 'normal', 'manual' ];

const PRESETS = {
	crypt: 'aes', mode: 'fast', mtu: '1350', datashard: '0', parityshard: '0',
	sockbuf: '1048576', smuxbuf: '1048576', streambuf: '524288', quiet: '1', memlimit: '32M'
};
const PRESETS_OF = {
	client: { bind_address: '127.0.0.1', local_port: '12948', server_port: '29900' },
	server: { maxsessions: '32', listen: '29900', target: '127.0.0.1', target_port: '12948' }
};

// What may count at most if an option is neither in the form nor in the file.
const DEFAULTS = { datashard: 10, parityshard: 3, smuxbuf: 4194304, streambuf: 2097152 };

function number(section, section_id, name) {
	const value = section.formvalue(section_id, name);
	return value == null || value === '' || value === 'auto' ? DEFAULTS[name] : +value;
}

function preset(section_id, type) {
	const options = uci.get('kcptun-lite', section_id);

	if (Object.keys(options).some(function(name) { return name.charAt(0) != '.'; }))
		return;

	Object.entries(Object.assign({}, PRESETS, PRESETS_OF[type])).forEach(function(entry) {
		uci.set('kcptun-lite', section_id, entry[0], entry[1]);
	});
}

// A switch may be written as 1, on, true, yes or enabled; the box knows only the first.
function read_switch(section_id) {
	const word = uci.get('kcptun-lite', section_id, this.option);
	return word == null || word === 'auto' ? null : /^(1|on|true|yes|enabled)$/i.test(word) ? '1' : '0';
}

// One option in the dialog: kind, name, title, description, further properties.
function add(section, tab, kind, name, title, description, properties) {
	const option = section.taboption(tab, kind, name, title, description);

	option.modalonly = true;
	option.rmempty = true;
	if (kind == form.Flag)
		option.cfgvalue = read_switch;
	Object.assign(option, properties || {});
	return option;
}

function number_option(section, tab, name, title, description, datatype, placeholder) {
	return add(section, tab, form.Value, name, title, description, { datatype: datatype, placeholder: placeholder });
}

// An address is needed in parts, unless the option that has it as a whole is set.
function unless(whole) {
	return function(section_id, value) {
		return value !== '' || !!this.section.formvalue(section_id, whole) || _('This is needed');
	};
}

function add_client_addresses(s) {
	add(s, 'basic', form.Value, 'server', _('Server'), _('Name or address of the kcptun server.'),
		{ datatype: 'host', validate: unless('remoteaddr') });
	add(s, 'basic', form.Value, 'server_port', _('Server port'),
		_('A UDP port, or a range such as 29900-29910 from which each session takes one at random.'),
		{ datatype: 'or(port, portrange)', validate: unless('remoteaddr') });
	add(s, 'basic', form.Value, 'bind_address', _('Local address'),
		_('Where programs connect to: 127.0.0.1 for this device only, its LAN address for the LAN too.'),
		{ datatype: 'ipaddr', placeholder: _('all addresses') });
	add(s, 'basic', form.Value, 'local_port', _('Local port'), _('TCP port programs connect to.'),
		{ datatype: 'port', validate: unless('localaddr') });
	add(s, 'expert', form.Value, 'remoteaddr', _('Servers'),
		_('In place of server and port: several with commas between, to fall back on; host:port or host:min-max.'));
	add(s, 'expert', form.Value, 'localaddr', _('Local address and port'),
		_('In place of the two: address:port, or the path of a unix socket.'));
}

function add_server_addresses(s) {
	add(s, 'basic', form.Value, 'listen', _('Port'),
		_('UDP port to serve on, a range, or address:port. The firewall must let it in.'), { rmempty: false });
	add(s, 'basic', form.Value, 'target', _('Target'),
		_('Where the tunnel ends: name or address of a TCP server, or the path of a unix socket.'), { rmempty: false });
	add(s, 'basic', form.Value, 'target_port', _('Target port'), null, { datatype: 'port' });
}

function add_security(s) {
	let o;

	add(s, 'basic', form.Value, 'key', _('Key'), _('The secret shared with the other end.'),
		{ password: true, rmempty: false });
	o = add(s, 'basic', form.ListValue, 'crypt', _('Encryption'), _('The same at both ends.'), { default: 'aes' });
	CRYPTS.forEach(function(name) { o.value(name); });
	o = add(s, 'basic', form.ListValue, 'mode', _('Mode'),
		_('From quick to thrifty with traffic; manual: the numbers under Expert.'), { default: 'fast' });
	MODES.forEach(function(name) { o.value(name); });
	o = add(s, 'basic', form.ListValue, 'nocomp', _('Compression'),
		_('As the other end has it, if not set. Slow without the package python3-cramjam.'), { cfgvalue: read_switch });
	o.value('', _('not set'));
	o.value('0', _('on'));
	o.value('1', _('off'));
}

function add_tuning(s, type) {
	let o;

	if (type == 'client') {
		o = add(s, 'tuning', form.ListValue, 'transport', _('Transport'),
			_('Packets as TCP segments where UDP is blocked or throttled; automatic: only while nothing comes back over UDP. The server needs it switched on.'),
			{ default: 'udp' });
		o.value('udp', 'UDP');
		o.value('tcp', 'TCP');
		o.value('auto', _('automatic'));
		add(s, 'tuning', form.Value, 'interface', _('Network'),
			_('The one that the tunnel leaves by, such as wanb; it waits while that is down.'),
			{ datatype: 'uciname', placeholder: _('as the routes say') });
		number_option(s, 'tuning', 'conn', _('Sessions'),
			_('UDP connections that streams take turns on.'), 'range(1,65535)', '1');
		number_option(s, 'tuning', 'autoexpire', _('Replace after'),
			_('Seconds after which a session gets no more new streams; 0: never.'), 'uinteger', '0');
		number_option(s, 'tuning', 'scavengettl', _('Close after'),
			_('Seconds a replaced session may live on for its open streams.'), 'uinteger', '600');
	}
	else {
		add(s, 'tuning', form.Flag, 'tcp', _('TCP too'),
			_('Serve clients whose packets come as TCP segments, on the same port.'));
		number_option(s, 'tuning', 'maxsessions', _('Clients'), _('Sessions at most.'), 'min(1)', '1024');
		number_option(s, 'tuning', 'workers', _('Workers'),
			_('Processes that share the clients, as one uses one core; auto: one for each core.'),
			'or("auto",range(1,64))', '1');
	}
	number_option(s, 'tuning', 'memlimit', _('Memory limit'),
		_('Memory to stay within, such as 32M.'), 'string', _('no limit'))
		.validate = function(section_id, value) {
			return value === '' || value === '0' || /^[0-9]+ *[KMGT]?(i?B)?$/i.test(value) ||
				_('Expecting a size such as 32M');
		};
	number_option(s, 'tuning', 'sndwnd', _('Send window'),
		_('Packets under way at most: bandwidth times round trip divided by MTU.'), 'or("auto",range(1,65535))', 'auto');
	number_option(s, 'tuning', 'rcvwnd', _('Receive window'),
		_('Packets the other end may have under way at most.'), 'or("auto",range(1,65535))', 'auto');
	number_option(s, 'tuning', 'mtu', _('MTU'), _('Bytes of UDP payload in the largest packet.'), 'range(50,1500)', '1350');
	number_option(s, 'tuning', 'ratelimit', _('Rate limit'),
		_('Bytes per second and session sent at most; 0: no limit.'), 'uinteger', '0');
	number_option(s, 'tuning', 'datashard', _('Data packets'),
		_('Packets in a group of error correction; 0: no error correction.'), 'or("auto",range(0,256))', 'auto');
	number_option(s, 'tuning', 'parityshard', _('Parity packets'),
		_('Packets added to each group: how many of it may be lost.'), 'or("auto",range(0,256))', 'auto')
		.validate = function(section_id) {
			return number(this.section, section_id, 'datashard') + number(this.section, section_id, 'parityshard') <= 256 ||
				_('Data and parity packets together must not be more than 256');
		};
}

function add_expert(s, type) {
	let o;

	o = add(s, 'expert', form.ListValue, 'smuxver', _('smux version'),
		_('As the other end has it, if not set.'));
	o.value('', _('not set'));
	o.value('1');
	o.value('2');
	number_option(s, 'expert', 'smuxbuf', _('Session buffer'),
		_('Bytes received for all streams of a session and not yet passed on.'), 'min(1)', '4194304');
	number_option(s, 'expert', 'streambuf', _('Stream buffer'),
		_('Bytes received for one stream and not yet passed on (smux version 2).'), 'min(1)', '2097152')
		.validate = function(section_id) {
			return number(this.section, section_id, 'streambuf') <= number(this.section, section_id, 'smuxbuf') ||
				_('The stream buffer must not be larger than the session buffer');
		};
	number_option(s, 'expert', 'framesize', _('Frame size'), _('Bytes in the largest frame.'), 'range(1,65535)', '32768');
	number_option(s, 'expert', 'maxstreams', _('Streams'), _('Open streams at most.'), 'min(1)', '1024');
	number_option(s, 'expert', 'keepalive', _('Keep-alive'),
		_('Seconds between signs of life of a session.'), 'range(1,30)', '10');
	number_option(s, 'expert', 'closewait', _('Close wait'),
		_('Seconds a stream with one closed end may wait for the other.'), 'uinteger', '300');
	number_option(s, 'expert', 'sockbuf', _('Socket buffer'),
		_('Bytes of the UDP socket\'s buffers, each way.'), 'min(1)', '4194304');
	number_option(s, 'expert', 'dscp', _('DSCP'), _('Class of the UDP packets.'), 'range(0,63)', '0');
	add(s, 'expert', form.Flag, 'acknodelay', _('Acknowledge at once'));
	[ [ 'nodelay', '0' ], [ 'interval', '50' ], [ 'resend', '0' ], [ 'nc', '0' ] ].forEach(function(entry) {
		number_option(s, 'expert', entry[0], entry[0], _('For the mode manual.'), 'uinteger', entry[1])
			.depends('mode', 'manual');
	});
	add(s, 'expert', form.Flag, 'qpp', _('QPP'), _('Scramble streams with permutation pads; the same at both ends.'));
	number_option(s, 'expert', 'qppcount', _('Number of pads'), null, 'range(1,65535)', '61').depends('qpp', '1');
	if (type == 'server')
		add(s, 'expert', form.Flag, 'strict', _('Strict'),
			_('Begin sessions only with the first packet of a conversation.'));
}

function add_service(s) {
	let o;

	add(s, 'service', form.Value, 'user', _('Run as user'), null, { placeholder: 'kcptun-lite' });
	number_option(s, 'service', 'nice', _('Priority'), _('From -20, the first to run, to 19.'), 'range(-20,19)', '0');
	o = add(s, 'service', form.ListValue, 'loglevel', _('Log level'), null, { default: 'info' });
	[ 'error', 'warning', 'info' ].forEach(function(level) { o.value(level); });
	add(s, 'service', form.Flag, 'quiet', _('Quiet'), _('No log lines about streams opened and closed.'));
}

function add_section(m, type, title, description, route) {
	const s = m.section(form.GridSection, type, title, description);
	let o;

	s.addremove = true;
	s.anonymous = false;
	s.sortable = true;
	s.nodescriptions = true;
	s.addbtntitle = type == 'client' ? _('Add client') : _('Add server');
	s.modaltitle = function(section_id) {
		return title + ' » ' + section_id;
	};
	s.renderMoreOptionsModal = function(section_id) {
		preset(section_id, type);
		return form.GridSection.prototype.renderMoreOptionsModal.apply(this, arguments);
	};

	s.tab('basic', _('Basic'));
	s.tab('tuning', _('Tuning'));
	s.tab('expert', _('Expert'));
	s.tab('service', _('Service'));

	o = s.taboption('basic', form.Flag, 'enabled', _('Enabled'));
	o.rmempty = false;
	o.editable = true;
	o.cfgvalue = read_switch;

	o = s.taboption('basic', form.DummyValue, '_route', _('From and to'));
	o.modalonly = false;
	o.cfgvalue = function(section_id) {
		return route(function(name) { return uci.get('kcptun-lite', section_id, name) || ''; });
	};

	if (type == 'client')
		add_client_addresses(s);
	else
		add_server_addresses(s);
	add_security(s);
	add_tuning(s, type);
	add_expert(s, type);
	add_service(s);
}

return view.extend({
	load: function() {
		return uci.load('kcptun-lite');
	},

	render: function() {
		const m = new form.Map('kcptun-lite', 'kcptun-lite',
			_('Tunnels that carry TCP connections over an error-correcting UDP, for lossy and long lines.'));

		add_section(m, 'client', _('Clients'), _('A client takes TCP connections here and carries them to a server.'),
			function(get) {
				return (get('localaddr') || get('bind_address') + ':' + get('local_port')) + ' → ' +
					(get('remoteaddr') || get('server') + ':' + get('server_port'));
			});
		add_section(m, 'server', _('Servers'), _('A server takes tunnels from clients and connects them to a target.'),
			function(get) {
				return get('listen') + ' → ' + get('target') + (get('target_port') && ':' + get('target_port'));
			});

		return m.render();
	}
});
