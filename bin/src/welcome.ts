import type { Settings } from './settings.ts';

/**
 * What a person needs after the start: addresses, the key (or where it stands) and a one-time link into the dashboard.
 * `askAt` is where the API answers from here, if not at its published address.
 */
export async function welcome(settings: Settings, options: { key: string; askAt?: string }): Promise<string> {
  const api = `http://127.0.0.1:${settings.ports.api}`;
  const dashboard = `http://127.0.0.1:${settings.ports.dashboard}`;
  const response = await fetch(`${options.askAt ?? api}/v1/x/sign_in_links`, {
    method: 'POST',
    headers: { authorization: `Bearer ${settings.apiKey}` },
  });
  const link = (await response.json()) as { token?: string };
  return [
    '',
    `  API         ${api}   (key: ${options.key})`,
    `  Dashboard   ${dashboard}`,
    ...(response.ok ? [`  Sign in     ${dashboard}/sign-in#token=${link.token}   (once, within 10 minutes)`] : []),
    ...(settings.demoGateway
      ? [
          '',
          '  The model is the demo gateway: a script, not a language model. Set LITELLM_GATEWAY_URL and LITELLM_API_KEY in .env for real ones.',
        ]
      : []),
    '',
  ].join('\n');
}
