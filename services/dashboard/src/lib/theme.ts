/** What was chosen here instead of the browser's preference; kept in a cookie, so that the first paint has it. */
export type Theme = 'light' | 'dark';
export const THEME_COOKIE = 'holdfast_theme';
const YEAR_SECONDS = 31_536_000;

export const isTheme = (value: unknown): value is Theme => value === 'light' || value === 'dark';

/** The choice in force; `system` when nothing was chosen. */
export function currentTheme(): Theme | 'system' {
  const { theme } = document.documentElement.dataset;
  return isTheme(theme) ? theme : 'system';
}

export function chooseTheme(theme: Theme | 'system'): void {
  const { dataset } = document.documentElement;
  if (theme === 'system') delete dataset['theme'];
  else dataset['theme'] = theme;
  const age = theme === 'system' ? 0 : YEAR_SECONDS;
  // biome-ignore lint/suspicious/noDocumentCookie: the Cookie Store API is for secure origins only
  document.cookie = `${THEME_COOKIE}=${theme}; path=/; max-age=${age}; samesite=lax`;
}
