// Takes the code out of the address that the command has printed.  It stands behind the #, which no browser sends, and leaves the address bar.
"use strict";

function useCode() {
  const form = document.getElementById("sign-in");
  const code = decodeURIComponent(location.hash.slice(1));
  if (!code || code === "main") return;
  history.replaceState(null, "", location.pathname);
  form.elements.code.value = code;
  form.submit();
}

window.addEventListener("hashchange", useCode); // where the address was given to a window that showed this page already
useCode();
